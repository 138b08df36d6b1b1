// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/init uio-echo PACKETS`: every packet comes back as it was sent.
//!
//! | Phase | What it exercises |
//! |---|---|
//! | `one-by-one` | each packet waits for its answer, with interrupts |
//! | `interrupts` | 32 packets on their way, interrupts when there is nothing to do |
//! | `masked` | the same without interrupts: the guest looks by itself |
//! | `flood` | as many as fit: the guest waits for room, and the host tells it |
//! | `full` | both rings are filled, then drained, with and without interrupts |
//! | `bursts` | groups of any size, taken all at once |

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::ring::{Receiver, Sender, Sent, both};
use super::{Device, interrupts, wait_for_device};

/// A host that does nothing for so long never will.
const STUCK: Duration = Duration::from_secs(20);
/// Packets taken before their room is given back.
const BATCH: u64 = 16;

/// Runs all phases, which come to so many packets.
pub fn run(packets: u64) -> io::Result<()> {
    let node = wait_for_device(Duration::from_secs(10))?;
    let (device, mapping, len) = Device::open(&node)?;
    let (sender, receiver) = both(&mapping, len)?;
    let mut link = Link::new(device, sender, receiver);
    let (start, before) = (Instant::now(), interrupts());
    let percent = packets / 100;
    link.phase("one-by-one", |link| link.stream(percent, 1, false))?;
    link.phase("interrupts", |link| link.stream(24 * percent, 32, false))?;
    link.phase("masked", |link| link.stream(25 * percent, 32, true))?;
    link.phase("flood", |link| link.stream(20 * percent, u64::MAX, false))?;
    link.phase("bursts", |link| link.bursts(15 * percent))?;
    // However many fit, so what is left is sent in the end.
    link.phase("full", |link| {
        for round in 0.. {
            if link.received >= packets && round > 1 {
                break;
            }
            link.fill()?;
            link.drain(round % 2 == 1)?;
        }
        Ok(())
    })?;
    let total = interrupts() - before;
    link.report("all", start, (0, 0, total));
    println!("ring-bytes={}", len / 2);
    Ok(())
}

/// An open channel and how far the stream of packets is.
#[derive(Debug)]
pub struct Link<'a> {
    device: Device,
    sender: Sender<'a>,
    receiver: Receiver<'a>,
    sent: u64,
    received: u64,
}

impl<'a> Link<'a> {
    /// A link on which nothing was sent yet.
    pub fn new(device: Device, sender: Sender<'a>, receiver: Receiver<'a>) -> Self {
        Self {
            device,
            sender,
            receiver,
            sent: 0,
            received: 0,
        }
    }

    /// Packets that came back.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Signals that the host was given.
    pub fn signals(&self) -> u64 {
        self.device.signals
    }

    fn phase(
        &mut self,
        name: &str,
        run: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        let start = Instant::now();
        let before = (self.received, self.device.signals, interrupts());
        run(self)
            .map_err(|error| io::Error::other(format!("{name}: {error}; {}", self.about())))?;
        let came = interrupts() - before.2;
        self.report(name, start, (before.0, before.1, came));
        Ok(())
    }

    fn report(&self, name: &str, start: Instant, (packets, signals, interrupts): (u64, u64, u64)) {
        println!(
            "phase={name} packets={} seconds={:.3} signals={} interrupts={interrupts}",
            self.received - packets,
            start.elapsed().as_secs_f64(),
            self.device.signals - signals,
        );
    }

    fn about(&self) -> String {
        format!(
            "sent {}, received {}; to the host: {}; from it: {}",
            self.sent,
            self.received,
            self.sender.about(),
            self.receiver.about()
        )
    }

    /// Sends and receives `count` packets with at most `window` on their way.
    pub fn stream(&mut self, count: u64, window: u64, masked: bool) -> io::Result<()> {
        let end = self.sent + count;
        self.receiver.mask(true);
        while self.received < end {
            let mut progress = self.take(BATCH, masked)? > 0;
            while self.sent < end && self.sent - self.received < window {
                if !self.put(masked)? {
                    break;
                }
                progress = true;
            }
            if !progress {
                let blocked = self.sent < end && self.sent - self.received < window;
                self.pause(masked, blocked)?;
            }
        }
        Ok(())
    }

    fn bursts(&mut self, count: u64) -> io::Result<()> {
        let end = self.received + count;
        while self.received < end {
            // Any size from 1 to 600, from the numbers at hand.
            let burst = self.sent.wrapping_mul(0x9e37_79b9) % 600 + 1;
            for _ in 0..burst.min(end - self.received) {
                while !self.put(false)? {
                    // Too large a group for what the rings hold.
                    if self.take(u64::MAX, false)? == 0 {
                        self.pause(false, true)?;
                    }
                }
            }
            while self.received < self.sent {
                if self.take(u64::MAX, false)? == 0 {
                    self.pause(false, false)?;
                }
            }
        }
        Ok(())
    }

    /// Writes without reading until the host can neither.
    fn fill(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + STUCK;
        let mut quiet = 0;
        while quiet < 20 {
            if self.put(true)? {
                quiet = 0;
                continue;
            }
            // The ring to the host is full; it stays so when the host waits for
            // room in the other one, which nobody makes.
            quiet += u32::from(self.receiver.host_waits()?);
            if Instant::now() >= deadline {
                return Err(io::Error::other("the rings don't fill up"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Reads everything that is on its way.
    fn drain(&mut self, masked: bool) -> io::Result<()> {
        self.receiver.mask(true);
        while self.received < self.sent {
            if self.take(BATCH, masked)? == 0 {
                self.pause(masked, false)?;
            }
        }
        Ok(())
    }

    /// Sends the next packet, if there is room.
    fn put(&mut self, masked: bool) -> io::Result<bool> {
        let Sent::Yes { signal } = self.sender.send(self.sent)? else {
            return Ok(false);
        };
        self.sent += 1;
        if signal {
            self.signal(masked)?;
        }
        Ok(true)
    }

    /// Takes up to `most` packets.
    fn take(&mut self, most: u64, masked: bool) -> io::Result<u64> {
        let mut taken = 0;
        while taken < most && self.receiver.receive(self.received)? {
            self.received += 1;
            taken += 1;
            if self.received > self.sent {
                return Err(io::Error::other("more came back than was sent"));
            }
        }
        if self.receiver.commit()? {
            self.signal(masked)?;
        }
        Ok(taken)
    }

    /// Signals the host, whatever the state of the rings.
    pub fn signal(&mut self, masked: bool) -> io::Result<()> {
        self.device.signal()?;
        if masked {
            self.receiver.mask(true);
        }
        Ok(())
    }

    /// There is nothing to do: waits until there is.
    fn pause(&mut self, masked: bool, blocked: bool) -> io::Result<()> {
        let deadline = Instant::now() + STUCK;
        let stuck = || io::Error::other(format!("nothing happened in {STUCK:?}"));
        if masked {
            while self.receiver.is_empty()? && !(blocked && self.sender.want_room(self.sent)?) {
                if Instant::now() >= deadline {
                    return Err(stuck());
                }
                thread::yield_now();
            }
            self.sender.want_nothing();
            return Ok(());
        }
        // Asked for first, looked at after: what came before is seen, what comes
        // after interrupts.
        self.receiver.mask(false);
        let room = blocked && self.sender.want_room(self.sent)?;
        if self.receiver.is_empty()? && !room && !self.device.wait(STUCK)? {
            return Err(stuck());
        }
        self.sender.want_nothing();
        Ok(())
    }

    /// Whether the device is still there: an error if not.
    pub fn look(&mut self) -> io::Result<()> {
        self.device.wait(Duration::ZERO).map(drop)
    }
}
