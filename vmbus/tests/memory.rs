// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the worst guest can make the host keep, measured at the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use vmbus::bus::OfferSpec;
use vmbus::host::{Channel, Device, DeviceError, Flow, Packet, SendError};
use vmbus::mock::{MockGuest, gpadl_messages};
use vmbus::wire::{
    GpadlId, GuestMessage, Guid, HostMessage, OpenChannel, ProtocolVersion, Relid, VpIndex,
};

struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(used, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that is wanted.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that is wanted.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// As stated in the crate's documentation.
const BOUND: usize = 16 << 20;

struct Quiet(u128);

impl Device for Quiet {
    fn offer(&self) -> OfferSpec {
        OfferSpec::message_pipe(Guid::from_u128(1), Guid::from_u128(self.0))
    }

    fn opened(&mut self, _: std::time::Duration, _: &mut Channel<'_>) -> Result<(), SendError> {
        Ok(())
    }

    fn packet(
        &mut self,
        _: std::time::Duration,
        _: &mut Channel<'_>,
        _: &Packet<'_>,
    ) -> Result<Flow, DeviceError> {
        Ok(Flow::Done)
    }
}

fn answered_well(guest: &mut MockGuest) -> bool {
    let mut well = false;
    while let Some(message) = guest.recv() {
        well = matches!(
            message,
            HostMessage::GpadlCreated { status: 0, .. }
                | HostMessage::OpenChannelResult { status: 0, .. }
        );
    }
    guest.take_log();
    well
}

#[test]
fn the_worst_guest_stays_within_the_stated_bound() {
    let mut guest = MockGuest::new(1);
    let start = USED.load(Ordering::Relaxed);
    for n in 1..2048 {
        guest.offer(Box::new(Quiet(n)));
    }
    assert!(guest.connect(ProtocolVersion::V5_3));
    assert_eq!(guest.request_offers().len(), 2047);
    guest.take_log();

    // The largest lists there are, of pages that are no neighbours, opened.
    let pfns: Vec<u64> = (0..8188).map(|n| 2048 + (n * 2) % 8192).collect();
    let mut opened = 0;
    for relid in (1..2048).map(Relid) {
        let gpadl = GpadlId(relid.0);
        for message in gpadl_messages(relid, gpadl, &pfns) {
            guest.post(&message);
        }
        if !answered_well(&mut guest) {
            break;
        }
        guest.post(&GuestMessage::OpenChannel(OpenChannel {
            relid,
            open_id: 1,
            gpadl,
            target_vp: VpIndex(0),
            downstream_offset: 4094,
            user_data: [0; 120],
        }));
        opened += u32::from(answered_well(&mut guest));
    }
    assert_eq!(opened, 24, "then the limit is reached");
    // As many small lists as there can be.
    let mut lists = 0;
    for n in 0..6000 {
        let relid = Relid(100 + n % 1900);
        let messages = gpadl_messages(relid, GpadlId(10_000 + n), &[5; 3]);
        guest.post(&messages[0]);
        lists += u32::from(answered_well(&mut guest));
    }
    assert_eq!(lists, 32, "of three pages each, up to the limit");
    // And a guest that does not read its messages.
    guest.set_deaf(true);
    for n in 0..8000 {
        guest.post(&gpadl_messages(Relid(0), GpadlId(n), &[5])[0]);
    }
    guest.take_log();

    let most = MOST.load(Ordering::Relaxed) - start;
    println!("{most} bytes at most");
    assert!(most < BOUND, "{most}");
}
