// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest and its host on two threads, as in a VM: rings are written and read
//! at the same time, and a wake-up that is lost is seen as a standstill.
//!
//! ```text
//!   guest thread                          host thread
//!   GuestRings ◄──── guest memory ────►   Host with the echo device
//!       │  "signal" ── channel ──────────►  HvSignalEvent
//!       └── channel ◄─────────── event flag
//! ```

#![allow(clippy::unwrap_used)] // a test may stumble

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use vmbus::host::EchoDevice;
use vmbus::mock::{GuestChannel, MockGuest};
use vmbus::wire::ProtocolVersion;

const PACKETS: u64 = 250_000;
/// Nothing takes so long, unless a wake-up was lost.
const STANDSTILL: Duration = Duration::from_secs(30);

fn payload(id: u64) -> Vec<u8> {
    // Mostly small, now and then most of a ring.
    let len = if id.is_multiple_of(97) {
        7000
    } else {
        id * 31 % 600
    };
    vec![u8::try_from(id % 251).unwrap(); usize::try_from(len).unwrap()]
}

struct Guest {
    channel: GuestChannel,
    signal: Sender<()>,
    events: Receiver<()>,
    /// Masks interrupts while it looks by itself, as batched drivers do.
    batched: bool,
    waits: u64,
}

impl Guest {
    fn run(mut self) -> u64 {
        let (mut sent, mut received) = (0, 0);
        while received < PACKETS {
            let before = (sent, received);
            while sent < PACKETS && self.send(sent) {
                sent += 1;
            }
            while let Some(packet) = self.channel.incoming.read() {
                let expected = payload(received);
                assert_eq!(packet.transaction_id, received);
                assert!(packet.payload.starts_with(&expected), "{received}");
                received += 1;
                // Not after each one: space comes in jumps.
                if received.is_multiple_of(3) {
                    self.commit();
                }
            }
            self.commit();
            if (sent, received) == before {
                self.wait(received);
            }
        }
        self.waits
    }

    fn send(&mut self, id: u64) -> bool {
        let bytes = payload(id);
        loop {
            match self.channel.outgoing.write(id, &bytes) {
                Some(true) => self.signal.send(()).unwrap(),
                Some(false) => {}
                None if self.channel.outgoing.request_space(&bytes) => continue,
                None => return false,
            }
            return true;
        }
    }

    fn commit(&mut self) {
        if self.channel.incoming.commit() {
            self.signal.send(()).unwrap();
        }
    }

    fn wait(&mut self, received: u64) {
        if self.batched {
            self.channel.incoming.set_mask(false);
            let (write, read) = self.channel.incoming.indices();
            if write != read {
                self.channel.incoming.set_mask(true);
                return;
            }
        }
        self.waits += 1;
        let event = self.events.recv_timeout(STANDSTILL);
        assert!(event.is_ok(), "asleep for ever at {received}");
        self.channel.incoming.set_mask(self.batched);
    }
}

fn exchange(batched: bool) {
    let mut host = MockGuest::new(1);
    let relid = host.offer(Box::new(EchoDevice::default()));
    assert!(host.connect(ProtocolVersion::V5_3));
    host.request_offers();
    let channel_ends = host.open(relid, 4).unwrap();
    channel_ends.incoming.set_mask(batched);
    host.take_events();

    let (signal, signals) = channel();
    let (event, events) = channel();
    let guest = Guest {
        channel: channel_ends,
        signal,
        events,
        batched,
        waits: 0,
    };
    let guest = thread::spawn(move || guest.run());
    while let Ok(()) = signals.recv() {
        host.signal(relid);
        host.take_log();
        if !host.take_events().is_empty() {
            // The guest may be done already.
            let _ = event.send(());
        }
    }
    let waits = guest.join().unwrap();
    let counts = host.counts();
    println!("batched {batched}: {waits} waits, {counts:?}");
    assert_eq!(host.host().violations().total(), 0);
    let echoed = host.host().device::<EchoDevice>(relid).unwrap().echoed();
    assert_eq!(echoed, PACKETS);
}

#[test]
fn no_wake_up_is_lost_when_the_guest_never_masks() {
    exchange(false);
}

#[test]
fn no_wake_up_is_lost_when_the_guest_masks_while_it_looks() {
    exchange(true);
}
