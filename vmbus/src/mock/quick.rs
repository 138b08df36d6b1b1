// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's end of a channel by the host's own code, the two rings exchanged:
//! what is measured with it is not the mock guest, which is slow and plain.

use super::MockGuest;
use crate::ring::{PacketMeta, RingPair, WriteError};
use crate::wire::{Relid, VpIndex};

/// An open channel whose guest is in no hurry to prove anything.
#[derive(Debug)]
pub struct QuickChannel {
    /// Its number.
    pub relid: Relid,
    /// `outgoing` is what the host reads, `incoming` what it writes.
    pub rings: RingPair,
}

impl MockGuest {
    /// Makes rings of `pages` pages each and opens the channel on them.
    pub fn open_quick(&mut self, relid: Relid, pages: u64) -> Result<QuickChannel, u32> {
        let pfns = self.alloc(2 * pages);
        self.open_on(relid, &pfns, VpIndex::BSP)?;
        let (to_host, to_guest) = pfns.split_at(pfns.len() / 2);
        let split = u32::try_from(to_guest.len()).expect("a small ring");
        let pfns = [to_guest, to_host].concat();
        let rings =
            RingPair::open(self.memory.clone(), &pfns, split).expect("the host has opened them");
        Ok(QuickChannel { relid, rings })
    }

    /// Writes a packet, which the host sees with the next
    /// [`flush`](Self::flush). False if there is no room.
    pub fn put(&mut self, channel: &mut QuickChannel, id: u64, parts: &[&[u8]]) -> bool {
        match channel.rings.outgoing.write(PacketMeta::in_band(id), parts) {
            Ok(()) => true,
            Err(WriteError::Full { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Copies the next packet's payload into `to`; its number. The host gets its
    /// room back with the next [`flush`](Self::flush).
    pub fn take(&mut self, channel: &mut QuickChannel, to: &mut Vec<u8>) -> Option<u64> {
        let incoming = &mut channel.rings.incoming;
        let packet = incoming.peek().expect("a sound ring")?;
        let id = packet.transaction_id;
        to.resize(packet.payload.len(), 0);
        packet.payload.copy_to(to);
        incoming.advance();
        Some(id)
    }

    /// Shows the host what was written and read, and signals if that is called for.
    pub fn flush(&mut self, channel: &mut QuickChannel) {
        let freed = channel.rings.incoming.commit().expect("a sound ring");
        let written = channel.rings.outgoing.publish().expect("a sound ring");
        if freed || written {
            self.signal(channel.relid);
        }
    }
}
