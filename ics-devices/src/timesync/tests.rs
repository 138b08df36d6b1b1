// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Time messages, with a guest that the test plays.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmbus::host::SendError;

use super::*;
use crate::script::{Script, answer, listed, millis, secs};
use crate::wire::HResult;

type Times = Script<TimeSyncProtocol>;

const SYNC: u8 = 1;
const SAMPLE: u8 = 2;

/// A clock that tells how often it was read.
fn counting() -> (Box<dyn HostClock>, Arc<AtomicU64>) {
    let reads = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&reads);
    let sample = move || {
        let read = clock.fetch_add(1, Ordering::Relaxed) + 1;
        TimeSample {
            host_time_100ns_since_1601: 0x0102_0304_0506_0700 + read,
            reference_time_100ns: 0x1112_1314_1516_1700 + read,
        }
    };
    (Box::new(sample), reads)
}

fn ready(version: (u16, u16)) -> (Times, Arc<AtomicU64>) {
    let (clock, reads) = counting();
    (Script::ready(TimeSync::new(clock), version), reads)
}

impl Times {
    /// The guest takes the next message; what kind it is.
    fn serve(&mut self) -> u8 {
        let message = self.take();
        let kind = message[if message[14] >= 4 { 44 } else { 52 }];
        self.send(&answer(message, 0));
        kind
    }

    /// Serves for a while; the kinds of the messages.
    fn serve_for(&mut self, seconds: u64) -> Vec<u8> {
        let mut kinds = Vec::new();
        for _ in 0..seconds {
            self.advance(secs(1));
            while self.unread() > 0 {
                kinds.push(self.serve());
            }
        }
        kinds
    }

    fn sync_now(&mut self) -> Result<Ticket, ServiceError> {
        let asked = self.device.sync_now(self.now, secs(4));
        self.poke();
        asked
    }

    fn outcome(&mut self) -> Option<Result<Synced, ServiceError>> {
        self.device.take_outcome().map(|outcome| outcome.result)
    }
}

#[test]
fn a_sync_of_version_four_is_these_bytes() {
    let (mut script, _) = ready((4, 0));
    let bytes = script.take();
    #[rustfmt::skip]
    let expected = [
        1, 0, 0, 0, 44, 0, 0, 0, // pipe: data, 20 + 24
        3, 0, 0, 0, 4, 0, 4, 0, 0, 0, 24, 0, // 3.0, timesync, 4.0, body of 24
        0, 0, 0, 0, 2, 3, 0, 0, // status 0, transaction 2, request
        1, 7, 6, 5, 4, 3, 2, 1, // the host's time
        1, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, // the reference counter
        1, 0, 0, 0, 0, 0, 0, 0, // SYNC, leap, stratum, reserved
        0, 0, 0, 0, // padding
    ];
    assert_eq!(bytes, expected);
}

#[test]
fn a_sync_of_version_three_is_these_bytes() {
    let (mut script, _) = ready((3, 0));
    let bytes = script.take();
    #[rustfmt::skip]
    let expected = [
        1, 0, 0, 0, 45, 0, 0, 0, // pipe: data, 20 + 25
        3, 0, 0, 0, 4, 0, 3, 0, 0, 0, 25, 0, // 3.0, timesync, 3.0, body of 25
        0, 0, 0, 0, 2, 3, 0, 0, // status 0, transaction 2, request
        1, 7, 6, 5, 4, 3, 2, 1, // the host's time
        0, 0, 0, 0, 0, 0, 0, 0, // the guest's time
        0, 0, 0, 0, 0, 0, 0, 0, // round trip
        1, 0, 0, 0, // SYNC, padding
    ];
    assert_eq!(bytes, expected);
}

#[test]
fn versions_three_and_four_are_offered() {
    let mut script = Script::new(TimeSync::new(counting().0));
    script.open();
    let versions = [IcVersion::new(3, 0), IcVersion::new(4, 0)];
    assert_eq!(listed(&script.take()).1, versions);
}

#[test]
fn one_sync_after_connecting_then_samples_every_five_seconds() {
    for version in [(3, 0), (4, 0)] {
        let (mut script, _) = ready(version);
        assert_eq!(script.serve(), SYNC);
        script.advance(millis(4_999));
        assert_eq!(script.unread(), 0);
        script.advance(millis(1));
        assert_eq!(script.serve(), SAMPLE);
        assert_eq!(script.serve_for(600), vec![SAMPLE; 120]);
        assert_eq!(script.device.syncs_sent(), 1);
        assert_eq!(script.device.samples_sent(), 121);
    }
}

#[test]
fn one_sync_after_each_resume() {
    let (mut script, _) = ready((4, 0));
    script.serve();
    for _ in 0..3 {
        script.serve_for(7);
        script.pause();
        assert_eq!(script.serve_for(60), []);
        script.resume();
        assert_eq!(script.serve(), SYNC);
        assert_eq!(script.serve_for(10), [SAMPLE, SAMPLE]);
    }
    assert_eq!(script.device.syncs_sent(), 4);
}

#[test]
fn a_resume_with_a_message_on_its_way_sends_its_sync_after_the_answer() {
    let (mut script, _) = ready((4, 0));
    script.pause();
    script.advance(secs(60));
    script.resume();
    // The SYNC from before the pause is stale by the length of the pause.
    assert_eq!(script.unread(), 1);
    assert_eq!(script.serve(), SYNC);
    assert_eq!(script.serve(), SYNC);
    assert_eq!(script.serve_for(5), [SAMPLE]);
}

#[test]
fn a_resume_before_the_guest_connects_adds_no_sync() {
    let mut script = Script::new(TimeSync::new(counting().0));
    script.pause();
    script.resume();
    script.open();
    script.negotiate((4, 0));
    assert_eq!(script.serve(), SYNC);
    assert_eq!(script.serve_for(10), [SAMPLE, SAMPLE]);
}

#[test]
fn reopening_syncs_again() {
    let (mut script, _) = ready((4, 0));
    script.serve();
    script.close();
    assert_eq!(script.device.last_sync(), None);
    script.open();
    script.negotiate((3, 0));
    assert_eq!(script.serve(), SYNC);
}

#[test]
fn the_clock_is_read_once_per_message_and_not_before_it_can_be_sent() {
    let (mut script, reads) = ready((4, 0));
    assert_eq!(reads.load(Ordering::Relaxed), 1);
    // The guest does not read: the time is not asked for in advance.
    script.advance(secs(100));
    assert_eq!(reads.load(Ordering::Relaxed), 1);
    script.serve();
    assert_eq!(reads.load(Ordering::Relaxed), 2);
    assert_eq!(script.take()[28], 2);
}

#[test]
fn a_time_that_found_no_room_is_thrown_away() {
    let (mut script, reads) = ready((4, 0));
    script.serve();
    script.ring.refuses = Some(SendError::Full);
    script.advance(secs(5));
    script.ring.refuses = None;
    script.poke();
    let sample = script.take();
    assert_eq!(u64::from(sample[28]), reads.load(Ordering::Relaxed));
    assert_eq!(sample[44], SAMPLE);
    assert_eq!(script.device.samples_sent(), 1);
}

#[test]
fn samples_do_not_pile_up_in_front_of_a_dead_guest() {
    let (mut script, _) = ready((4, 0));
    script.advance(secs(3600));
    assert_eq!(script.unread(), 1);
    assert_eq!(script.serve_for(12), [SYNC, SAMPLE, SAMPLE, SAMPLE]);
}

#[test]
fn a_ring_too_small_for_a_message_is_not_tried_all_the_time() {
    let (mut script, reads) = ready((4, 0));
    script.serve();
    script.ring.refuses = Some(SendError::TooLarge);
    script.advance(secs(50));
    assert_eq!(reads.load(Ordering::Relaxed), 11);
}

#[test]
fn a_sync_on_request_is_one_sync_and_tells_what_it_said() {
    let (mut script, _) = ready((4, 0));
    script.serve();
    script.serve_for(7);
    let ticket = script.sync_now().unwrap();
    assert_eq!(script.serve(), SYNC);
    let outcome = script.device.take_outcome().unwrap();
    assert_eq!(outcome.ticket, ticket);
    let sample = outcome.result.unwrap().sample;
    assert_eq!(sample.host_time_100ns_since_1601, 0x0102_0304_0506_0703);
    assert_eq!(script.device.last_sync(), Some(script.now));
    assert_eq!(script.serve_for(10), [SAMPLE, SAMPLE]);
}

#[test]
fn a_sync_on_request_waits_for_the_sample_on_its_way() {
    let (mut script, _) = ready((4, 0));
    script.serve();
    script.advance(secs(5));
    script.sync_now().unwrap();
    assert_eq!(script.unread(), 1);
    assert_eq!(script.serve(), SAMPLE);
    assert_eq!(script.outcome(), None);
    assert_eq!(script.serve(), SYNC);
    assert!(script.outcome().unwrap().is_ok());
}

#[test]
fn a_request_while_a_sync_is_due_is_one_sync() {
    let (mut script, _) = ready((4, 0));
    script.pause();
    assert_eq!(script.sync_now(), Err(ServiceError::Paused));
    script.resume();
    script.sync_now().unwrap();
    assert_eq!(script.serve(), SYNC, "from before the pause");
    assert_eq!(script.outcome(), None);
    assert_eq!(script.serve(), SYNC);
    assert!(script.outcome().unwrap().is_ok());
    assert_eq!(script.serve_for(5), [SAMPLE]);
}

#[test]
fn a_sync_that_could_not_be_sent_in_time_is_withdrawn() {
    let (mut script, _) = ready((4, 0));
    script.serve();
    script.advance(secs(5));
    script.sync_now().unwrap();
    script.advance(secs(4));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Unsent)));
    // Nobody is waiting for a step any more.
    assert_eq!(script.serve(), SAMPLE);
    assert_eq!(script.serve_for(5), [SAMPLE]);
}

#[test]
fn a_sync_that_is_not_answered_in_time_times_out_and_samples_go_on_later() {
    let (mut script, _) = ready((4, 0));
    script.serve();
    script.sync_now().unwrap();
    assert_eq!(script.sync_now(), Err(ServiceError::Busy));
    script.advance(secs(4));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Timeout)));
    script.advance(secs(60));
    assert_eq!(script.unread(), 1);
    assert_eq!(script.serve(), SYNC);
    assert_eq!(script.outcome(), None);
    assert_eq!(script.serve(), SAMPLE);
}

#[test]
fn a_refused_sync_tells_the_guests_status() {
    let (mut script, _) = ready((4, 0));
    script.serve();
    script.sync_now().unwrap();
    let message = script.take();
    script.send(&answer(message, 0x8000_4005));
    let error = ServiceError::Guest(HResult::FAIL);
    assert_eq!(script.outcome(), Some(Err(error)));
    assert_eq!(script.device.last_sync(), Some(secs(0)));
}

#[test]
fn a_guest_that_fills_its_time_in_shows_its_offset() {
    let (mut script, _) = ready((3, 0));
    let mut message = script.take();
    assert_eq!(script.device.guest_offset(), None);
    // The host's time, plus 0xff.
    let host_time: [u8; 8] = message[28..36].try_into().unwrap();
    let guest_time = u64::from_le_bytes(host_time) + 0xff;
    message[36..44].copy_from_slice(&guest_time.to_le_bytes());
    script.send(&answer(message, 0));
    assert_eq!(script.device.guest_offset(), Some(0xff));
}

#[test]
fn an_answer_without_a_body_is_bad() {
    let (mut script, _) = ready((4, 0));
    script.serve();
    script.sync_now().unwrap();
    let mut message = answer(script.take(), 0);
    message[18] = 23;
    script.send(&message);
    assert_eq!(script.outcome(), Some(Err(ServiceError::BadAnswer)));
    assert_eq!(script.device.counts().ignored, 1);
    assert_eq!(script.serve_for(5), [SAMPLE]);
}

#[test]
fn the_detail_tells_when_the_guest_took_the_time() {
    let (mut script, _) = ready((4, 0));
    assert_eq!(script.detail(), "the guest has not taken the time yet");
    script.serve();
    script.serve_for(6);
    script.advance(millis(500));
    assert_eq!(
        script.detail(),
        "last sample 1.5 s ago, clock set 6.5 s ago"
    );
}

#[test]
fn a_sample_counts_from_1601() {
    let sample = TimeSample::from_unix(Duration::new(1, 200), 7);
    assert_eq!(
        sample.host_time_100ns_since_1601,
        116_444_736_000_000_000 + 10_000_002
    );
    assert_eq!(sample.reference_time_100ns, 7);
}
