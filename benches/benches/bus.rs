// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control plane: how fast guests can come and go.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use vmbus::host::EchoDevice;
use vmbus::mock::MockGuest;
use vmbus::wire::{GuestMessage, ProtocolVersion, VpIndex};

fn cycles(c: &mut Criterion) {
    let mut guest = MockGuest::new(1);
    let relid = guest.offer(Box::new(EchoDevice::default()));
    guest.connect(ProtocolVersion::V5_3);
    guest.request_offers();
    let pages = guest.alloc(8);
    c.bench_function("open and close a channel", |b| {
        b.iter(|| {
            let channel = guest.open_on(relid, &pages, VpIndex::BSP).unwrap();
            guest.close(&channel);
            // The mock guest remembers what happened.
            guest.take_log()
        });
    });
    c.bench_function("unload and connect", |b| {
        b.iter(|| {
            guest.post(&GuestMessage::Unload);
            while guest.recv().is_some() {}
            guest.connect(ProtocolVersion::V5_3);
            guest.request_offers();
            guest.take_log()
        });
    });
    let mut channel = guest.open_on(relid, &pages, VpIndex::BSP).unwrap();
    c.bench_function("a packet there and back through a device", |b| {
        b.iter(|| {
            guest.send(&mut channel, 1, &[7; 64]);
            guest.take_log();
            guest.receive(&mut channel).unwrap()
        });
    });
}

criterion_group!(benches, cycles);
criterion_main!(benches);
