// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the ring to a service and back nothing is allocated per packet: counted
//! at the allocator, once everything has grown to its size.

// A guest that stumbles should fail its test loudly.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use ics_devices::fcopy::Target;
use ics_devices::{Fcopy, Heartbeat, NewFile};
use vmbus::host::{EchoDevice, Host};
use vmbus::hvsock::{Socket, Stream, StreamError, service_of_port};
use vmbus::memory::GuestSlice;
use vmbus::mock::{MockGuest, QuickChannel};
use vmbus::wire::Relid;
use vmbus::wire::{PipeHeader, ProtocolVersion};

struct Counting;

thread_local! {
    /// This thread's: the harness has threads of its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is the one that is wanted.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the one that is wanted.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PACKETS: u64 = 1000;

/// A guest's end of one channel, and what it read last.
struct Guest {
    mock: MockGuest,
    channel: QuickChannel,
    now: Duration,
    payload: Vec<u8>,
}

impl Guest {
    fn open(offer: impl FnOnce(&mut MockGuest) -> Relid) -> Self {
        let mut guest = MockGuest::new(1);
        assert!(guest.connect(ProtocolVersion::V5_3));
        guest.request_offers();
        let relid = offer(&mut guest);
        while guest.recv().is_some() {}
        let channel = guest.open_quick(relid, 16).unwrap();
        Self {
            mock: guest,
            channel,
            now: Duration::ZERO,
            payload: Vec::with_capacity(1 << 16),
        }
    }

    /// Something at the host, whose signals are dropped: the mock guest would
    /// keep a record of them.
    fn at_host<T>(&mut self, act: impl FnOnce(&mut Host, Duration) -> T) -> T {
        let now = self.now;
        self.mock.with_host(|host, _| {
            let said = act(host, now);
            while host.poll_action().is_some() {}
            said
        })
    }

    fn send(&mut self, parts: &[&[u8]]) {
        assert!(self.mock.put(&mut self.channel, 1, parts));
        self.channel.rings.outgoing.publish().unwrap();
        let relid = self.channel.relid;
        self.at_host(|host, now| host.handle_event(now, relid));
    }

    fn take(&mut self) -> bool {
        let taken = self.mock.take(&mut self.channel, &mut self.payload);
        self.channel.rings.incoming.commit().unwrap();
        taken.is_some()
    }

    /// Sends `payload` back as an answer, as drivers of Linux do.
    fn answer(&mut self, status: u32) {
        self.payload[20..24].copy_from_slice(&status.to_le_bytes());
        self.payload[25] = 5;
        let payload = std::mem::take(&mut self.payload);
        self.send(&[&payload]);
        self.payload = payload;
    }

    /// Chooses of the versions that are offered.
    fn negotiate(&mut self, versions: [u8; 8]) {
        assert!(self.take());
        self.payload[18..20].copy_from_slice(&[16, 0]);
        self.payload[28..32].copy_from_slice(&[1, 0, 1, 0]);
        self.payload[36..44].copy_from_slice(&versions);
        self.answer(0);
    }
}

/// Allocations of as many rounds as there are packets, after as many to grow.
fn allocations(mut round: impl FnMut()) -> u64 {
    (0..PACKETS).for_each(|_| round());
    let before = ALLOCATIONS.get();
    (0..PACKETS).for_each(|_| round());
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(Box::new(ALLOCATIONS.get()))), PACKETS);
}

#[test]
fn packets_of_all_sizes_pass_a_device_without_allocations() {
    let mut guest = Guest::open(|guest| guest.offer(Box::new(EchoDevice::default())));
    let data = [7; 16384];
    let mut sizes = [0, 7, 16, 64, 4096, 16384].into_iter().cycle();
    let count = allocations(|| {
        guest.send(&[&data[..sizes.next().unwrap()]]);
        assert!(guest.take());
    });
    assert_eq!(count, 0);
}

/// Takes everything and gives as much.
struct End;

impl Stream for End {
    fn write(&mut self, data: &[u8]) -> Result<usize, StreamError> {
        Ok(data.len())
    }

    fn write_pieces(&mut self, pieces: &[GuestSlice<'_>]) -> Result<usize, StreamError> {
        Ok(pieces.iter().map(GuestSlice::len).sum())
    }

    fn close_write(&mut self) {}

    fn read(&mut self, into: &mut [u8]) -> Result<usize, StreamError> {
        into.fill(7);
        Ok(into.len())
    }

    fn is_gone(&self) -> bool {
        false
    }
}

#[test]
fn streams_run_both_ways_without_allocations() {
    let (service, instance) = (service_of_port(1), service_of_port(2));
    let socket = Socket::connecting(Duration::ZERO, service, instance, Box::new(End));
    let mut guest = Guest::open(|guest| guest.offer_streaming(Box::new(socket)));
    let header = PipeHeader::data(4096).to_bytes();
    let count = allocations(|| {
        guest.send(&[&header, &[7; 4096]]);
        assert!(guest.take());
        // More to give is a deadline that has come.
        guest.at_host(Host::handle_timeout);
    });
    assert_eq!(count, 0);
}

#[test]
fn heartbeats_take_no_allocations() {
    let mut guest = Guest::open(|guest| guest.offer(Box::new(Heartbeat::new())));
    guest.negotiate([3, 0, 0, 0, 3, 0, 0, 0]);
    let mut beats = 0;
    let count = allocations(|| {
        guest.now += Duration::from_secs(1);
        guest.at_host(Host::handle_timeout);
        while guest.take() {
            beats += 1;
            guest.payload[28] = guest.payload[28].wrapping_add(1);
            guest.answer(0);
        }
    });
    assert!(beats >= PACKETS, "{beats}");
    assert_eq!(count, 0);
}

#[test]
fn fragments_of_a_file_take_no_allocations() {
    let mut guest = Guest::open(|guest| guest.offer(Box::new(Fcopy::new())));
    guest.negotiate([3, 0, 0, 0, 1, 0, 1, 0]);
    let relid = guest.channel.relid;
    // It looks whether there is a daemon, which says that / exists.
    assert!(guest.take());
    guest.answer(0x8007_0050);
    let file = NewFile::new(Target::new("/tmp/file").unwrap(), 1 << 30);
    guest.at_host(|host, now| {
        let fcopy = host.device_mut::<Fcopy>(relid).unwrap();
        fcopy.start(now, file).unwrap();
        host.poke(now, relid);
    });
    let data = [7; 6144];
    let count = allocations(|| {
        assert!(guest.take());
        guest.answer(0);
        guest.at_host(|host, now| {
            host.device_mut::<Fcopy>(relid).unwrap().push(now, &data);
            host.poke(now, relid);
        });
    });
    assert_eq!(count, 0);
}
