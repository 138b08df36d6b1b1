// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control plane: how fast guests can come and go.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use vmbus::host::EchoDevice;
use vmbus::mock::MockGuest;
use vmbus::wire::{GuestMessage, ProtocolVersion, Relid, VpIndex};

fn ready() -> (MockGuest, Relid) {
    let mut guest = MockGuest::new(1);
    let relid = guest.offer(Box::new(EchoDevice::default()));
    guest.connect(ProtocolVersion::V5_3);
    guest.request_offers();
    (guest, relid)
}

fn reconnect(guest: &mut MockGuest) {
    guest.post(&GuestMessage::Unload);
    while guest.recv().is_some() {}
    assert!(guest.connect(ProtocolVersion::V5_3));
    assert_eq!(guest.request_offers().len(), 1);
}

fn cycles(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus");
    let (mut guest, relid) = ready();
    let pages = guest.alloc(8);
    group.bench_function("connect, offers, open, close, unload", |b| {
        b.iter(|| {
            reconnect(&mut guest);
            let channel = guest.open_on(relid, &pages, VpIndex::BSP).unwrap();
            guest.close(&channel);
            // The mock guest remembers what happened.
            guest.take_log()
        });
    });
    group.bench_function("open, close", |b| {
        b.iter(|| {
            let channel = guest.open_on(relid, &pages, VpIndex::BSP).unwrap();
            guest.close(&channel);
            guest.take_log()
        });
    });
    let mut channel = guest.open_quick(relid, 8).unwrap();
    let mut back = Vec::new();
    group.bench_function("a packet there and back through a device", |b| {
        b.iter(|| {
            assert!(guest.put(&mut channel, 1, &[&[7; 64]]));
            guest.flush(&mut channel);
            guest.take(&mut channel, &mut back).unwrap();
            guest.flush(&mut channel);
            guest.take_log()
        });
    });
    group.finish();
}

criterion_group!(benches, cycles);
criterion_main!(benches);
