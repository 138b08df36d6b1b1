// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's end of a ring, after what Linux does (protocol 5): slow, plain,
//! and independent of the host's code.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A packet as the guest read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPacket {
    /// What it is.
    pub packet_type: u16,
    /// Flags.
    pub flags: u16,
    /// The host's number for it.
    pub transaction_id: u64,
    /// The data with its padding.
    pub payload: Vec<u8>,
}

/// One ring of a channel, from the guest's side.
#[derive(Clone, Debug)]
pub struct GuestRing {
    memory: Arc<GuestMemoryMmap>,
    pfns: Vec<u64>,
    /// The guest's own read index, ahead of the shared one until a commit.
    read: u32,
}

const WRITE_INDEX: u64 = 0;
const READ_INDEX: u64 = 4;
const INTERRUPT_MASK: u64 = 8;
const PENDING_SEND_SZ: u64 = 12;
const FEATURE_BITS: u64 = 64;
const IN_BAND: u16 = 6;

impl GuestRing {
    /// Clears the control page and says that pending_send_sz is understood.
    pub fn init(memory: &Arc<GuestMemoryMmap>, pfns: &[u64]) -> Self {
        let ring = Self {
            memory: Arc::clone(memory),
            pfns: pfns.to_vec(),
            read: 0,
        };
        let page = GuestAddress(pfns[0] * 4096);
        memory.write_slice(&[0; 4096], page).expect("guest memory");
        ring.set(FEATURE_BITS, 1);
        ring
    }

    /// Bytes of the data area.
    pub fn size(&self) -> u32 {
        u32::try_from((self.pfns.len() - 1) * 4096).expect("a small ring")
    }

    /// Does the host want no signals?
    pub fn is_masked(&self) -> bool {
        self.get(INTERRUPT_MASK) != 0
    }

    /// Says whether the guest wants no signals.
    pub fn set_mask(&self, masked: bool) {
        self.set(INTERRUPT_MASK, masked.into());
        fence(Ordering::SeqCst);
    }

    /// What the writer of this ring waits for.
    pub fn pending_send_sz(&self) -> u32 {
        self.get(PENDING_SEND_SZ)
    }

    /// Puts up a pending size by hand.
    pub fn set_pending_send_sz(&self, size: u32) {
        self.set(PENDING_SEND_SZ, size);
    }

    /// Puts up indices by hand.
    pub fn set_indices(&self, write: u32, read: u32) {
        self.set(WRITE_INDEX, write);
        self.set(READ_INDEX, read);
    }

    /// The shared indices: write, read.
    pub fn indices(&self) -> (u32, u32) {
        (self.get(WRITE_INDEX), self.get(READ_INDEX))
    }

    /// Free bytes.
    pub fn free(&self) -> u32 {
        let (write, read) = self.indices();
        if write >= read {
            self.size() - (write - read)
        } else {
            read - write
        }
    }

    /// Writes plain data. `None` if there is no room, otherwise whether the host
    /// must be signalled.
    pub fn write(&mut self, id: u64, payload: &[u8]) -> Option<bool> {
        self.write_packet(IN_BAND, 0, id, payload)
    }

    /// Writes a packet.
    pub fn write_packet(
        &mut self,
        packet_type: u16,
        flags: u16,
        id: u64,
        payload: &[u8],
    ) -> Option<bool> {
        let len8 = 2 + payload.len().div_ceil(8);
        let total = u32::try_from(len8 * 8 + 8).expect("a small packet");
        if self.free() <= total {
            return None;
        }
        let old = self.get(WRITE_INDEX);
        let len8 = u16::try_from(len8).expect("a small packet");
        let mut bytes = Vec::new();
        for field in [packet_type, 2, len8, flags] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(id.to_le_bytes());
        bytes.extend(payload);
        bytes.resize(usize::from(len8) * 8, 0);
        bytes.extend((u64::from(old) << 32).to_le_bytes());
        self.put(old, &bytes);
        fence(Ordering::SeqCst);
        self.set(WRITE_INDEX, (old + total) % self.size());
        fence(Ordering::SeqCst);
        Some(!self.is_masked() && old == self.get(READ_INDEX))
    }

    /// Asks the host for a signal when `payload` fits; true if it does now.
    pub fn request_space(&mut self, payload: &[u8]) -> bool {
        let total = u32::try_from(16 + payload.len().next_multiple_of(8) + 8).expect("small");
        self.set(PENDING_SEND_SZ, total);
        fence(Ordering::SeqCst);
        let room = self.free() > total;
        if room {
            self.set(PENDING_SEND_SZ, 0);
        }
        room
    }

    /// Reads the next packet, without giving its room back.
    pub fn read(&mut self) -> Option<GuestPacket> {
        let write = self.get(WRITE_INDEX);
        if write == self.read {
            return None;
        }
        fence(Ordering::SeqCst);
        let mut header = [0; 16];
        self.take(self.read, &mut header);
        let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let (offset, len) = (u32::from(field(2)) * 8, u32::from(field(4)) * 8);
        assert_eq!(offset, 16, "the host writes plain headers");
        let mut payload = vec![0; usize::try_from(len - offset).expect("small")];
        self.take((self.read + offset) % self.size(), &mut payload);
        let mut trailer = [0; 8];
        self.take((self.read + len) % self.size(), &mut trailer);
        assert_eq!(trailer, (u64::from(self.read) << 32).to_le_bytes());
        self.read = (self.read + len + 8) % self.size();
        Some(GuestPacket {
            packet_type: field(0),
            flags: field(6),
            transaction_id: u64::from_le_bytes(header[8..].try_into().expect("8 bytes")),
            payload,
        })
    }

    /// Gives the room of everything read back; true if the host waits for it
    /// and must be signalled.
    pub fn commit(&mut self) -> bool {
        let start = self.get(READ_INDEX);
        let consumed = (self.read + self.size() - start) % self.size();
        fence(Ordering::SeqCst);
        self.set(READ_INDEX, self.read);
        fence(Ordering::SeqCst);
        let pending = self.get(PENDING_SEND_SZ);
        let free = self.free();
        // Below zero if the host wrote on meanwhile: then it does not wait, and
        // the wrapped number says so.
        pending != 0 && free.wrapping_sub(consumed) <= pending && free > pending
    }

    fn get(&self, offset: u64) -> u32 {
        let at = GuestAddress(self.pfns[0] * 4096 + offset);
        self.memory.load(at, Ordering::Acquire).expect("in memory")
    }

    fn set(&self, offset: u64, value: u32) {
        let at = GuestAddress(self.pfns[0] * 4096 + offset);
        self.memory
            .store(value, at, Ordering::Release)
            .expect("in memory");
    }

    /// Calls `each` with the addresses of the pieces of `len` bytes from `at` on.
    fn pieces(&self, at: u32, len: usize, mut each: impl FnMut(GuestAddress, usize, usize)) {
        let size = usize::try_from(self.size()).expect("small");
        let mut at = usize::try_from(at).expect("small");
        let mut done = 0;
        while done < len {
            let here = (4096 - at % 4096).min(len - done);
            let page = self.pfns[1 + at / 4096] * 4096;
            each(GuestAddress(page + (at % 4096) as u64), done, here);
            done += here;
            at = (at + here) % size;
        }
    }

    fn put(&self, at: u32, bytes: &[u8]) {
        self.pieces(at, bytes.len(), |address, done, here| {
            self.memory
                .write_slice(&bytes[done..done + here], address)
                .expect("in memory");
        });
    }

    fn take(&self, at: u32, bytes: &mut [u8]) {
        self.pieces(at, bytes.len(), |address, done, here| {
            self.memory
                .read_slice(&mut bytes[done..done + here], address)
                .expect("in memory");
        });
    }
}
