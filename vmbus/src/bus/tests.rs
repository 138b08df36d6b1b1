// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The whole protocol, driven by the mock guest.

mod hostile;
mod lifecycle;
mod sessions;

use crate::bus::*;
use crate::host::{Device, ECHO_INSTANCE, EchoDevice};
use crate::mock::MockGuest;
use crate::wire::*;

const V5_3: ProtocolVersion = ProtocolVersion::V5_3;

/// An echo device with the instance number `n`.
fn echo(n: u128) -> Box<dyn Device> {
    let instance = Guid::from_u128(ECHO_INSTANCE.to_u128() + n);
    Box::new(EchoDevice::new(instance))
}

/// A connected guest with one echo device that it was offered.
fn with_echo() -> (MockGuest, Relid) {
    let mut guest = MockGuest::new(2);
    let relid = guest.offer(echo(0));
    assert!(guest.connect(V5_3));
    assert_eq!(guest.request_offers().len(), 1);
    (guest, relid)
}

fn assert_echoes(guest: &mut MockGuest, channel: &mut crate::mock::GuestChannel) {
    assert!(guest.send(channel, 9, b"are you there?!!"));
    let packet = guest.receive(channel).expect("an echo");
    assert_eq!(
        (packet.transaction_id, &packet.payload[..]),
        (9, &b"are you there?!!"[..])
    );
}

fn violations(guest: &MockGuest) -> u64 {
    guest.host().violations().total()
}
