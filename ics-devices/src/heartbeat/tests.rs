// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Heartbeats, with a guest that the test plays.

use super::*;
use crate::script::{Script, answer, listed, millis, secs};

type Beats = Script<HeartbeatProtocol>;

fn ready() -> Beats {
    Script::ready(Heartbeat::new(), (3, 0))
}

/// What Linux does with a beat.
fn plus_one(beat: Vec<u8>) -> Vec<u8> {
    let mut beat = answer(beat, 0);
    let sequence = u64::from_le_bytes(beat[28..36].try_into().unwrap());
    beat[28..36].copy_from_slice(&sequence.wrapping_add(1).to_le_bytes());
    beat
}

impl Beats {
    fn beat(&mut self) {
        let beat = self.take();
        self.send(&plus_one(beat));
    }

    fn health(&self) -> Health {
        self.device.health()
    }
}

#[test]
fn a_beat_is_these_bytes() {
    let mut script = ready();
    let beat = script.take();
    #[rustfmt::skip]
    let head = [
        1, 0, 0, 0, 60, 0, 0, 0, // pipe: data, 20 + 40
        3, 0, 0, 0, 1, 0, 3, 0, 0, 0, 40, 0, // 3.0, heartbeat, 3.0, body of 40
        0, 0, 0, 0, 2, 3, 0, 0, // status 0, transaction 2, request
        1, 0, 0, 0, 0, 0, 0, 0, // sequence number
    ];
    assert_eq!(beat[..36], head);
    assert_eq!(beat[36..], [0; 36]);
}

#[test]
fn versions_one_and_three_are_offered() {
    let mut script = Script::new(Heartbeat::new());
    script.open();
    let versions = [IcVersion::new(1, 0), IcVersion::new(3, 0)];
    let (frameworks, services) = listed(&script.take());
    assert_eq!(
        (&frameworks[..], &services[..]),
        (&versions[..], &versions[..])
    );
}

#[test]
fn the_first_beat_comes_at_once_and_then_one_every_two_seconds() {
    let mut script = ready();
    assert_eq!(script.health(), Health::NoContact);
    script.beat();
    assert_eq!(script.health(), Health::Ok);
    for sequence in 2..20 {
        script.advance(millis(1999));
        assert_eq!(script.unread(), 0);
        script.advance(millis(1));
        let beat = script.take();
        assert_eq!(beat[28], sequence);
        script.send(&plus_one(beat));
        assert_eq!(script.health(), Health::Ok);
    }
}

#[test]
fn a_guest_that_stops_answering_is_lost_within_eight_seconds() {
    let mut script = ready();
    script.beat();
    script.advance(millis(7_999));
    assert_eq!(script.health(), Health::Ok);
    assert_eq!(script.device.missed(), 2);
    script.advance(millis(1));
    assert_eq!(script.health(), Health::Lost);
    assert_eq!(script.detail(), "last beat 8.0 s ago, 3 missed");
    assert_eq!(script.state(), ServiceState::Ready);
}

#[test]
fn beats_do_not_pile_up_in_front_of_a_dead_guest() {
    let mut script = ready();
    script.beat();
    script.advance(secs(3600));
    assert_eq!(script.unread(), 1);
    assert_eq!(script.health(), Health::Lost);
}

#[test]
fn a_guest_that_comes_back_is_well_again() {
    let mut script = ready();
    script.beat();
    script.advance(secs(1000));
    script.beat();
    assert_eq!(script.health(), Health::Ok);
    assert_eq!(script.device.missed(), 0);
    // The next one comes with the next interval, not at once.
    assert_eq!(script.unread(), 0);
    script.advance(secs(2));
    assert_eq!(script.unread(), 1);
}

#[test]
fn a_guest_that_never_answered_is_not_lost() {
    let mut script = ready();
    script.advance(secs(100));
    assert_eq!(script.health(), Health::NoContact);
    assert_eq!(script.detail(), "no beat yet");
}

#[test]
fn a_wrong_sequence_number_is_a_missed_beat() {
    let mut script = ready();
    script.beat();
    for missed in 1..=3 {
        script.advance(secs(2));
        let beat = script.take();
        // Sent back as it is.
        script.send(&answer(beat, 0));
        assert_eq!(script.device.missed(), missed);
    }
    assert_eq!(script.health(), Health::Lost);
    assert_eq!(script.device.counts().ignored, 3);
}

#[test]
fn an_answer_too_short_for_a_sequence_number_is_a_missed_beat() {
    let mut script = ready();
    let mut beat = plus_one(script.take());
    beat[18] = 39;
    script.send(&beat);
    assert_eq!(script.health(), Health::NoContact);
    assert_eq!(
        (script.device.missed(), script.device.counts().ignored),
        (1, 1)
    );
}

#[test]
fn the_application_state_is_kept() {
    let mut script = ready();
    let mut beat = plus_one(script.take());
    beat[36] = 2;
    script.send(&beat);
    let state = script.device.application_state();
    assert_eq!(state, ApplicationState::CRITICAL);
    assert_eq!(
        script.detail(),
        "last beat 0.0 s ago, applications critical"
    );
}

#[test]
fn a_pause_of_any_length_is_not_held_against_the_guest() {
    let mut script = ready();
    script.beat();
    // One beat is on its way, and two intervals have passed without an answer.
    script.advance(secs(6));
    assert_eq!(script.device.missed(), 2);
    script.pause();
    assert_eq!(script.health(), Health::Paused);
    assert_eq!(script.detail(), "paused");
    script.advance(secs(1_000_000));
    assert_eq!(script.unread(), 1);
    assert_eq!(script.health(), Health::Paused);

    script.resume();
    assert_eq!(script.health(), Health::Ok);
    assert_eq!(script.detail(), "last beat 6.0 s ago");
    script.advance(millis(5_999));
    assert_eq!(script.health(), Health::Ok);
    script.advance(millis(1));
    assert_eq!(script.health(), Health::Lost);
}

#[test]
fn beats_go_on_after_a_pause() {
    let mut script = ready();
    script.beat();
    script.pause();
    script.advance(secs(100));
    assert_eq!(script.unread(), 0);
    script.resume();
    script.advance(secs(2));
    script.beat();
    assert_eq!(script.health(), Health::Ok);
}

#[test]
fn a_guest_lost_before_a_pause_is_lost_after_it() {
    let mut script = ready();
    script.beat();
    script.advance(secs(10));
    script.pause();
    script.advance(secs(10));
    script.resume();
    assert_eq!(script.health(), Health::Lost);
}

#[test]
fn a_host_that_was_stopped_counts_one_missed_beat() {
    let mut script = ready();
    script.beat();
    script.advance(secs(2));
    let beat = script.take();
    script.jump(secs(30));
    assert_eq!(script.health(), Health::Ok);
    assert_eq!(script.device.missed(), 1);
    script.send(&plus_one(beat));
    assert_eq!(script.device.missed(), 0);
    script.advance(secs(2));
    assert_eq!(script.unread(), 1);
}

#[test]
fn a_channel_that_is_closed_before_the_first_beat_was_answered_is_no_contact() {
    let mut script = ready();
    script.advance(secs(2));
    script.close();
    assert_eq!(script.health(), Health::NoContact);
}

#[test]
fn a_guest_that_closes_the_channel_is_lost_until_it_answers_again() {
    let mut script = ready();
    script.beat();
    script.advance(secs(2));
    script.close();
    assert_eq!(script.health(), Health::Lost);
    script.advance(secs(10));
    script.open();
    script.negotiate((1, 0));
    assert_eq!(script.health(), Health::Lost);
    script.beat();
    assert_eq!(script.health(), Health::Ok);
    assert_eq!(script.device.missed(), 0);
}

#[test]
fn a_full_ring_counts_as_missed_beats() {
    let mut script = ready();
    script.beat();
    script.ring.refuses = Some(vmbus::host::SendError::Full);
    script.advance(secs(8));
    assert_eq!(script.health(), Health::Lost);
    script.ring.refuses = None;
    script.poke();
    script.beat();
    assert_eq!(script.health(), Health::Ok);
}

#[test]
fn a_sequence_number_wraps_around() {
    let mut heartbeat = Heartbeat::new();
    heartbeat.protocol.sequence = u64::MAX - 2;
    let mut script = Script::ready(heartbeat, (3, 0));
    for _ in 0..4 {
        script.beat();
        assert_eq!(script.health(), Health::Ok);
        script.advance(secs(2));
    }
}
