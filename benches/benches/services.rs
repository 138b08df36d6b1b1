// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole operations of the services, and streams, against a guest that answers
//! at once and stores nothing.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ics_devices::fcopy::Target;
use ics_devices::kvp::{Key, Pool, Value};
use ics_devices::{Fcopy, Kvp, KvpAnswer, KvpRequest, NewFile};
use vmbus::hvsock::{Socket, Stream, StreamError, service_of_port};
use vmbus::memory::GuestSlice;
use vmbus::mock::{MockGuest, QuickChannel};
use vmbus::wire::{PIPE_HEADER_SIZE, PipeHeader, ProtocolVersion, Relid};

const ITEMS: u32 = 200;
const FILE: usize = 100_000_000;
/// What a write of a program's is, and what Linux puts into one packet of it.
const WRITE: usize = 64 * 1024;
const PACKET: usize = 4096;
/// Pages of a Linux guest's socket ring.
const SOCKET_PAGES: u64 = 53;

/// A guest with one open channel.
struct Guest {
    mock: MockGuest,
    channel: QuickChannel,
    payload: Vec<u8>,
}

impl Guest {
    fn open(offer: impl FnOnce(&mut MockGuest) -> Relid, pages: u64) -> Self {
        let mut guest = MockGuest::new(1);
        assert!(guest.connect(ProtocolVersion::V5_3));
        guest.request_offers();
        let relid = offer(&mut guest);
        while guest.recv().is_some() {}
        let channel = guest.open_quick(relid, pages).unwrap();
        Self {
            mock: guest,
            channel,
            payload: Vec::new(),
        }
    }

    fn relid(&self) -> Relid {
        self.channel.relid
    }

    /// The next packet is in `payload`.
    fn take(&mut self) -> bool {
        self.mock
            .take(&mut self.channel, &mut self.payload)
            .is_some()
    }

    /// Sends `payload` back as an answer, as drivers of Linux do.
    fn answer(&mut self, status: u32) {
        self.payload[20..24].copy_from_slice(&status.to_le_bytes());
        self.payload[25] = 5;
        assert!(self.mock.put(&mut self.channel, 1, &[&self.payload]));
        self.mock.flush(&mut self.channel);
        self.mock.take_log();
    }

    /// Chooses of the versions that are offered.
    fn negotiate(&mut self, versions: [u16; 4]) {
        assert!(self.take());
        self.payload[18..20].copy_from_slice(&[16, 0]);
        self.payload[28..32].copy_from_slice(&[1, 0, 1, 0]);
        let versions: Vec<u8> = versions.into_iter().flat_map(u16::to_le_bytes).collect();
        self.payload[36..44].copy_from_slice(&versions);
        self.answer(0);
    }
}

fn key(n: u32) -> Key {
    Key::new(&format!("some key {n}")).unwrap()
}

/// The daemon takes every item, and has as many to tell of.
fn serve_items(guest: &mut Guest) {
    const ENUMERATE: u8 = 3;
    const NO_MORE: u32 = 0x8007_0103;
    while guest.take() {
        let index = u32::from_le_bytes(guest.payload[32..36].try_into().unwrap());
        let status = if guest.payload[28] == ENUMERATE && index >= ITEMS {
            NO_MORE
        } else {
            0
        };
        if guest.payload[28] == ENUMERATE && status == 0 {
            guest.payload[36..48].copy_from_slice(&[1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]);
            guest.payload[48] = b'k';
            guest.payload[560] = b'v';
        }
        guest.answer(status);
    }
}

fn kvp(c: &mut Criterion) {
    let items = (0..ITEMS).map(|n| (key(n), Value::text("some value").unwrap()));
    let mut guest = Guest::open(|guest| guest.offer(Box::new(Kvp::new(items))), 4);
    guest.negotiate([3, 0, 4, 0]);
    serve_items(&mut guest);
    let relid = guest.relid();
    let mut group = c.benchmark_group("services");
    group.throughput(Throughput::Elements(ITEMS.into()));
    group.bench_function("KVP, 200 items set", |b| {
        b.iter(|| {
            for n in 0..ITEMS {
                let set = KvpRequest::Set(Pool::External, key(n), Value::text("new").unwrap());
                assert_eq!(asked(&mut guest, relid, set), KvpAnswer::Done);
            }
        });
    });
    group.bench_function("KVP, 200 items listed", |b| {
        b.iter(
            || match asked(&mut guest, relid, KvpRequest::List(Pool::Guest, 0)) {
                KvpAnswer::Items(listing) => assert_eq!(listing.items.len(), 200),
                other => panic!("{other:?}"),
            },
        );
    });
    group.finish();
}

fn asked(guest: &mut Guest, relid: Relid, request: KvpRequest) -> KvpAnswer {
    guest.mock.with_host(|host, now| {
        let kvp = host.device_mut::<Kvp>(relid).unwrap();
        kvp.request(now, request, Duration::from_secs(60)).unwrap();
        host.poke(now, relid);
    });
    serve_items(guest);
    let kvp =
        |host: &mut vmbus::host::Host, _| host.device_mut::<Kvp>(relid).unwrap().take_outcome();
    guest.mock.with_host(kvp).unwrap().result.unwrap()
}

fn fcopy(c: &mut Criterion) {
    let mut guest = Guest::open(|guest| guest.offer(Box::new(Fcopy::new())), 8);
    guest.negotiate([3, 0, 1, 1]);
    let relid = guest.relid();
    // It looks whether there is a daemon.
    while guest.take() {
        guest.answer(0x8007_0050);
    }
    let data = vec![7; 1 << 20];
    let mut group = c.benchmark_group("services");
    group.throughput(Throughput::Bytes(FILE as u64));
    group.sample_size(10);
    group.bench_function("file copy, 100 MB", |b| {
        b.iter(|| copy(&mut guest, relid, &data));
    });
    group.finish();
}

fn copy(guest: &mut Guest, relid: Relid, data: &[u8]) {
    let file = NewFile::new(Target::new("/tmp/file").unwrap(), FILE as u64);
    let mut left = FILE;
    guest.mock.with_host(|host, now| {
        let fcopy = host.device_mut::<Fcopy>(relid).unwrap();
        fcopy.start(now, file).unwrap();
        host.poke(now, relid);
    });
    loop {
        while guest.take() {
            guest.answer(0);
        }
        let outcome = guest.mock.with_host(|host, now| {
            let fcopy = host.device_mut::<Fcopy>(relid).unwrap();
            left -= fcopy.push(now, &data[..left.min(data.len())]);
            let outcome = fcopy.take_outcome();
            host.poke(now, relid);
            outcome
        });
        if let Some(outcome) = outcome {
            assert_eq!(outcome.result.unwrap().size, FILE as u64);
            return;
        }
    }
}

/// The host's end of a socket: takes everything, and gives what it is told to.
struct End {
    /// Bytes to give.
    left: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    /// What it takes it gives back.
    echo: bool,
}

impl Stream for End {
    fn write(&mut self, data: &[u8]) -> Result<usize, StreamError> {
        if self.echo {
            self.left.fetch_add(data.len(), RELAXED);
        }
        Ok(data.len())
    }

    fn write_pieces(&mut self, pieces: &[GuestSlice<'_>]) -> Result<usize, StreamError> {
        let len = pieces.iter().map(GuestSlice::len).sum();
        if self.echo {
            self.left.fetch_add(len, RELAXED);
        }
        Ok(len)
    }

    fn close_write(&mut self) {}

    fn read(&mut self, into: &mut [u8]) -> Result<usize, StreamError> {
        let len = into.len().min(self.left.load(RELAXED));
        if len == 0 {
            return Err(StreamError::WouldBlock);
        }
        self.left.fetch_sub(len, RELAXED);
        into[..len].fill(7);
        Ok(len)
    }

    fn is_gone(&self) -> bool {
        false
    }
}

const RELAXED: std::sync::atomic::Ordering = std::sync::atomic::Ordering::Relaxed;

fn sockets(c: &mut Criterion) {
    let left = std::sync::Arc::default();
    let open = |echo| {
        let left = std::sync::Arc::clone(&left);
        let end = Box::new(End { left, echo });
        let (service, instance) = (service_of_port(5000), service_of_port(6000));
        let socket = Socket::connecting(Duration::ZERO, service, instance, end);
        Guest::open(
            |guest| guest.offer_streaming(Box::new(socket)),
            SOCKET_PAGES,
        )
    };
    let mut group = c.benchmark_group("hv_sock");
    group.throughput(Throughput::Bytes(WRITE as u64));
    let data = [7; PACKET];
    let mut guest = open(false);
    group.bench_function("64 KiB to the host", |b| {
        b.iter(|| {
            let header = PipeHeader::data(4096).to_bytes();
            for _ in 0..WRITE / PACKET {
                let parts = [&header[..], &data];
                assert!(guest.mock.put(&mut guest.channel, 0, &parts));
            }
            guest.mock.flush(&mut guest.channel);
            guest.mock.take_log()
        });
    });
    let relid = guest.relid();
    group.bench_function("64 KiB to the guest", |b| {
        b.iter(|| {
            left.store(WRITE, RELAXED);
            guest.mock.with_host(|host, now| host.poke(now, relid));
            let mut got = 0;
            while got < WRITE {
                assert!(guest.take());
                got += guest.payload.len() - PIPE_HEADER_SIZE;
            }
            guest.mock.flush(&mut guest.channel);
            guest.mock.take_log()
        });
    });
    let mut guest = open(true);
    group.throughput(Throughput::Elements(1));
    group.bench_function("64 bytes there and back", |b| {
        b.iter(|| {
            let header = PipeHeader::data(64).to_bytes();
            let parts = [&header[..], &data[..64]];
            assert!(guest.mock.put(&mut guest.channel, 0, &parts));
            guest.mock.flush(&mut guest.channel);
            let relid = guest.relid();
            guest.mock.with_host(|host, now| host.poke(now, relid));
            assert!(guest.take());
            guest.mock.flush(&mut guest.channel);
            guest.mock.take_log()
        });
    });
    group.finish();
}

criterion_group!(benches, kvp, fcopy, sockets);
criterion_main!(benches);
