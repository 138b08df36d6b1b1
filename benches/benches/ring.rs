// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A packet written and read, beside the two copies that it cannot do without.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use vmbus::ring::{Incoming, Outgoing, PacketMeta, WriteError};
use vmbus_benches::{Buffer, Copies, Ends, Layout, SIZES};

/// Samples are shorter than a turn of the scheduler's: on a busy machine some of
/// them are undisturbed.
fn measured<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(200);
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(200));
    group
}

/// Each size beside its limit, so that what else the machine does meanwhile
/// strikes both.
fn packets(c: &mut Criterion) {
    let mut group = measured(c, "packet");
    for size in SIZES {
        let (from, mut to) = (Buffer::new(size), Buffer::new(size));
        group.throughput(Throughput::Bytes(size as u64));
        for (name, layout) in [
            ("one thread", Layout::Contiguous),
            ("scattered pages", Layout::Scattered),
        ] {
            let mut ends = Ends::new(layout);
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter(|| ends.pass(&from, &mut to));
            });
        }
        let mut copies = Copies::default();
        group.bench_function(BenchmarkId::new("memcpy", size), |b| {
            b.iter(|| copies.pass(&from, &mut to));
        });
        group.bench_function(BenchmarkId::new("two threads", size), |b| {
            // Criterion counts small at first, and starting is not what it costs.
            b.iter_custom(|count| across(count * LAP, from.get()) / LAP32);
        });
    }
    group.finish();
}

const LAP: u64 = 64;
const LAP32: u32 = 64;

/// One thread writes, another reads; both look again instead of sleeping.
fn across(count: u64, from: &[u8]) -> Duration {
    let mut ends = Ends::new(Layout::Contiguous);
    let (writer, reader) = (&mut ends.host.outgoing, &mut ends.guest.incoming);
    let ready = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            ready.wait();
            write(writer, count, from);
        });
        ready.wait();
        let start = Instant::now();
        read(reader, count, from.len());
        start.elapsed()
    })
}

fn write(ring: &mut Outgoing, count: u64, from: &[u8]) {
    for id in 0..count {
        while let Err(error) = ring.write(PacketMeta::in_band(id), &[from]) {
            assert!(matches!(error, WriteError::Full { .. }), "{error}");
            thread::yield_now();
        }
        black_box(ring.publish().unwrap());
    }
}

fn read(ring: &mut Incoming, count: u64, size: usize) {
    let mut to = Buffer::new(size);
    for id in 0..count {
        let packet = loop {
            if !ring.is_empty().unwrap() {
                break ring.peek().unwrap().unwrap();
            }
            thread::yield_now();
        };
        assert_eq!(packet.transaction_id, id);
        packet.payload.copy_to(black_box(&mut to).get_mut());
        ring.advance();
        black_box(ring.commit().unwrap());
    }
}

/// Sixteen packets for one publish and one commit.
fn batches(c: &mut Criterion) {
    const BATCH: usize = 16;
    let mut group = measured(c, "batch of 16");
    for size in [16, 256, 4096] {
        let mut ends = Ends::new(Layout::Contiguous);
        let (from, mut to) = (Buffer::new(size), Buffer::new(size));
        group.throughput(Throughput::Bytes((size * BATCH) as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                for id in 0..BATCH as u64 {
                    let meta = PacketMeta::in_band(id);
                    let from = black_box(&from).get();
                    ends.host.outgoing.write(meta, &[from]).unwrap();
                }
                black_box(ends.host.outgoing.publish().unwrap());
                while let Some(packet) = ends.guest.incoming.peek().unwrap() {
                    packet.payload.copy_to(black_box(&mut to).get_mut());
                    ends.guest.incoming.advance();
                }
                black_box(ends.guest.incoming.commit().unwrap());
            });
        });
    }
    group.finish();
}

/// A ring that stays full: the reader makes room for one packet, for which the
/// writer waits, and finds it full again.
fn full(c: &mut Criterion) {
    let mut group = measured(c, "full ring");
    for size in [16, 256, 4096] {
        let mut ends = Ends::new(Layout::Contiguous);
        let (from, mut to) = (Buffer::new(size), Buffer::new(size));
        let (meta, ring) = (PacketMeta::in_band(1), &mut ends.host.outgoing);
        let needed = loop {
            match ring.write(meta, &[from.get()]) {
                Ok(()) => {}
                Err(WriteError::Full { needed }) => break needed,
                Err(error) => panic!("{error}"),
            }
        };
        ring.publish().unwrap();
        assert!(!ring.request_space(needed).unwrap());
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                let packet = ends.guest.incoming.peek().unwrap().unwrap();
                packet.payload.copy_to(black_box(&mut to).get_mut());
                ends.guest.incoming.advance();
                assert!(ends.guest.incoming.commit().unwrap(), "the writer waits");
                let ring = &mut ends.host.outgoing;
                ring.write(meta, &[black_box(&from).get()]).unwrap();
                black_box(ring.publish().unwrap());
                ring.write(meta, &[from.get()]).unwrap_err();
                assert!(!ring.request_space(needed).unwrap(), "it is full");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, packets, batches, full);
criterion_main!(benches);
