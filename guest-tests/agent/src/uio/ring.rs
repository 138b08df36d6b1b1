// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's ends of a channel's two rings (protocol 5), as a driver in user
//! space has them: the control words and the data, mapped once.
//!
//! Packets and indices are multiples of 8 bytes, so data is moved in words of
//! 64 bits, and a word never straddles the end of the ring.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::packet::{self, Header};
use crate::raw::Mapping;

const CONTROL_BYTES: usize = 4096;
const WORD: u32 = 8;

/// One ring: its control words and its data.
#[derive(Debug)]
struct Ring<'a> {
    write_index: &'a AtomicU32,
    read_index: &'a AtomicU32,
    interrupt_mask: &'a AtomicU32,
    pending_send_sz: &'a AtomicU32,
    data: &'a [AtomicU64],
    size: u32,
}

impl<'a> Ring<'a> {
    fn new(mapping: &'a Mapping, start: usize, len: usize) -> io::Result<Self> {
        let [write_index, read_index, interrupt_mask, pending_send_sz] =
            mapping.words32(start, 4)?
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let size = len - CONTROL_BYTES;
        Ok(Self {
            write_index,
            read_index,
            interrupt_mask,
            pending_send_sz,
            data: mapping.words64(start + CONTROL_BYTES, size / 8)?,
            size: u32::try_from(size).map_err(io::Error::other)?,
        })
    }

    fn check(&self, index: u32) -> io::Result<u32> {
        if index < self.size && index.is_multiple_of(WORD) {
            Ok(index)
        } else {
            Err(io::Error::other(format!(
                "the host wrote index {index} into a ring of {} bytes",
                self.size
            )))
        }
    }

    /// Bytes that wait to be read.
    fn used(&self) -> io::Result<u32> {
        let write = self.check(self.write_index.load(Ordering::Acquire))?;
        let read = self.check(self.read_index.load(Ordering::Acquire))?;
        Ok(if write >= read {
            write - read
        } else {
            self.size - (read - write)
        })
    }

    fn wrap(&self, index: u32, by: u32) -> u32 {
        (index + by) % self.size
    }

    fn word(&self, index: u32) -> io::Result<&AtomicU64> {
        let word = usize::try_from(index / WORD).ok();
        word.and_then(|word| self.data.get(word))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn about(&self) -> String {
        format!(
            "write {} read {} mask {} pending {} of {}",
            self.write_index.load(Ordering::Relaxed),
            self.read_index.load(Ordering::Relaxed),
            self.interrupt_mask.load(Ordering::Relaxed),
            self.pending_send_sz.load(Ordering::Relaxed),
            self.size
        )
    }
}

/// The ring to the host.
#[derive(Debug)]
pub struct Sender<'a>(Ring<'a>);

/// What came of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is in the ring; the host has to be told if so.
    Yes { signal: bool },
    /// There is no room for it.
    Full,
}

impl Sender<'_> {
    /// Puts packet number `seq` into the ring.
    pub fn send(&mut self, seq: u64) -> io::Result<Sent> {
        let ring = &self.0;
        let needed = packet::ring_bytes(seq);
        // Never quite full: that would look like empty.
        if ring.size - ring.used()? <= needed {
            return Ok(Sent::Full);
        }
        let start = ring.write_index.load(Ordering::Relaxed);
        let mut at = start;
        for word in packet::words(seq, start) {
            ring.word(at)?.store(word, Ordering::Relaxed);
            at = ring.wrap(at, WORD);
        }
        ring.write_index.store(at, Ordering::Release);
        // The host stores its mask, then looks at the index; here it is the
        // other way round, so one of the two sees the other's store.
        fence(Ordering::SeqCst);
        let masked = ring.interrupt_mask.load(Ordering::Relaxed) != 0;
        let was_empty = ring.read_index.load(Ordering::Relaxed) == start;
        Ok(Sent::Yes {
            signal: !masked && was_empty,
        })
    }

    /// Asks the host to signal when there is room for packet `seq`. True if
    /// there is already.
    pub fn want_room(&mut self, seq: u64) -> io::Result<bool> {
        let needed = packet::ring_bytes(seq);
        self.0.pending_send_sz.store(needed, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Ok(self.0.size - self.0.used()? > needed)
    }

    /// Takes that back.
    pub fn want_nothing(&mut self) {
        self.0.pending_send_sz.store(0, Ordering::Relaxed);
    }

    /// The state, for a message.
    pub fn about(&self) -> String {
        self.0.about()
    }
}

/// The ring from the host.
#[derive(Debug)]
pub struct Receiver<'a> {
    ring: Ring<'a>,
    /// Where the next packet is; behind `read_index` until the commit.
    cursor: u32,
}

impl Receiver<'_> {
    /// Takes the next packet, which must be the answer to packet `seq`, word by
    /// word. False if there is none.
    pub fn receive(&mut self, seq: u64) -> io::Result<bool> {
        let ring = &self.ring;
        let write = ring.check(ring.write_index.load(Ordering::Acquire))?;
        if write == self.cursor {
            return Ok(false);
        }
        let mut at = self.cursor;
        let mut next = || -> io::Result<u64> {
            let word = ring.word(at)?.load(Ordering::Relaxed);
            at = ring.wrap(at, WORD);
            Ok(word)
        };
        let header = [next()?, next()?];
        let expected = Header::of_answer(seq).to_words();
        if header != expected {
            return Err(io::Error::other(format!(
                "packet {seq} at {}: its header is {header:#x?} instead of {expected:#x?}; {}",
                self.cursor,
                self.about()
            )));
        }
        for (place, expected) in packet::payload(seq).enumerate() {
            let found = next()?;
            if found != expected {
                return Err(io::Error::other(format!(
                    "packet {seq} at {}: word {place} is {found:#x} instead of {expected:#x}; {}",
                    self.cursor,
                    self.about()
                )));
            }
        }
        let trailer = next()?;
        if trailer != packet::trailer(self.cursor) {
            return Err(io::Error::other(format!(
                "packet {seq} at {}: its trailer is {trailer:#x}",
                self.cursor
            )));
        }
        self.cursor = at;
        Ok(true)
    }

    /// Gives the room of what was taken back to the host. True if the host waits
    /// for just that and has to be told.
    pub fn commit(&mut self) -> io::Result<bool> {
        let ring = &self.ring;
        let read = ring.read_index.load(Ordering::Relaxed);
        let taken = if self.cursor >= read {
            self.cursor - read
        } else {
            ring.size - (read - self.cursor)
        };
        if taken == 0 {
            return Ok(false);
        }
        ring.read_index.store(self.cursor, Ordering::Release);
        // The host stores what it waits for, then looks at the index.
        fence(Ordering::SeqCst);
        let pending = ring.pending_send_sz.load(Ordering::Relaxed);
        if pending == 0 {
            return Ok(false);
        }
        let free = ring.size - ring.used()?;
        Ok(free > pending && free.saturating_sub(taken) <= pending)
    }

    /// Asks for interrupts, or for none. With a fence, so that a look at the
    /// ring comes after it.
    pub fn mask(&mut self, masked: bool) {
        let mask = u32::from(masked);
        self.ring.interrupt_mask.store(mask, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> io::Result<bool> {
        let write = self.ring.write_index.load(Ordering::Acquire);
        Ok(self.ring.check(write)? == self.cursor)
    }

    /// Whether the host waits for room that is not there.
    pub fn host_waits(&self) -> io::Result<bool> {
        let pending = self.ring.pending_send_sz.load(Ordering::Acquire);
        Ok(pending != 0 && self.ring.size - self.ring.used()? <= pending)
    }

    /// The state, for a message.
    pub fn about(&self) -> String {
        self.ring.about()
    }
}

/// Both rings in a mapping of them one after the other, half of it each.
pub fn both(mapping: &Mapping, len: usize) -> io::Result<(Sender<'_>, Receiver<'_>)> {
    let half = len / 2;
    let receiver = Ring::new(mapping, half, half)?;
    let cursor = receiver.check(receiver.read_index.load(Ordering::Relaxed))?;
    Ok((
        Sender(Ring::new(mapping, 0, half)?),
        Receiver {
            ring: receiver,
            cursor,
        },
    ))
}
