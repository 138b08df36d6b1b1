// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A packet written and read, beside the two copies that it cannot do without.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vmbus::ring::PacketMeta;
use vmbus_benches::{Ends, Layout};

const SIZES: [usize; 7] = [16, 40, 64, 256, 1024, 4096, 16384];
const RING: usize = 32 * 4096;

fn packets(c: &mut Criterion) {
    for (name, layout) in [
        ("packet", Layout::Contiguous),
        ("packet, scattered pages", Layout::Scattered),
    ] {
        let mut group = c.benchmark_group(name);
        for size in SIZES {
            let mut ends = Ends::new(layout);
            let (from, mut to) = (vec![7; size], vec![0; size]);
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::from_parameter(size), |b| {
                b.iter(|| {
                    let meta = PacketMeta::in_band(1);
                    ends.host.outgoing.write(meta, &[black_box(&from)]).unwrap();
                    black_box(ends.host.outgoing.publish().unwrap());
                    let packet = ends.guest.incoming.peek().unwrap().unwrap();
                    packet.payload.copy_to(black_box(&mut to));
                    ends.guest.incoming.advance();
                    black_box(ends.guest.incoming.commit().unwrap());
                });
            });
        }
        group.finish();
    }
}

/// Sixteen packets for one publish and one commit.
fn batches(c: &mut Criterion) {
    const BATCH: usize = 16;
    let mut group = c.benchmark_group("batch of 16");
    for size in [16, 256, 4096] {
        let mut ends = Ends::new(Layout::Contiguous);
        let (from, mut to) = (vec![7; size], vec![0; size]);
        group.throughput(Throughput::Bytes((size * BATCH) as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                for id in 0..BATCH as u64 {
                    let meta = PacketMeta::in_band(id);
                    ends.host.outgoing.write(meta, &[black_box(&from)]).unwrap();
                }
                black_box(ends.host.outgoing.publish().unwrap());
                while let Some(packet) = ends.guest.incoming.peek().unwrap() {
                    packet.payload.copy_to(black_box(&mut to));
                    ends.guest.incoming.advance();
                }
                black_box(ends.guest.incoming.commit().unwrap());
            });
        });
    }
    group.finish();
}

/// The limit: the same bytes into memory of a ring's size and out of it.
fn copies(c: &mut Criterion) {
    let mut group = c.benchmark_group("two copies");
    for size in SIZES {
        let (from, mut to) = (vec![7; size], vec![0; size]);
        let mut ring = vec![0; RING + size];
        let mut at = 0;
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                ring[at..at + size].copy_from_slice(black_box(&from));
                black_box(&mut ring);
                to.copy_from_slice(&ring[at..at + size]);
                black_box(&mut to);
                at = (at + size + 24) % RING;
            });
        });
    }
    group.finish();
}

criterion_group!(benches, packets, batches, copies);
criterion_main!(benches);
