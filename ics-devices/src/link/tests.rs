// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is common to all services, with a guest that the test plays.

use super::*;
use crate::device::Ic;
use crate::protocol::{Answer, BadAnswer, Deadline, Protocol, Request};
use crate::script::{Script, answer, listed, millis, negotiated, secs};
use crate::service::Service;
use crate::slot::{Requests, Slot, Ticket};
use crate::status::ServiceState;

/// The smallest service: sends a byte, and keeps what comes back. Like data
/// exchange it is negotiated by a daemon.
#[derive(Default)]
struct Ask {
    slot: Slot<Vec<u8>, Vec<u8>>,
    connections: u32,
}

impl Protocol for Ask {
    const SERVICE: Service = Service::Kvp;
    const VERSIONS: &'static [IcVersion] = &[IcVersion::new(3, 0), IcVersion::new(4, 0)];
    const WAITS_FOR_DAEMON: bool = true;

    fn connected(&mut self, _: Duration, _: Versions) {
        self.connections += 1;
    }

    fn disconnected(&mut self, _: Duration) {
        self.slot.finish(Err(ServiceError::NotOpen));
    }

    fn requests(&self) -> Option<&dyn Requests> {
        Some(&self.slot)
    }

    fn requests_mut(&mut self) -> Option<&mut dyn Requests> {
        Some(&mut self.slot)
    }

    fn request(&mut self, _: Duration, _: Versions, body: &mut Vec<u8>) -> Option<Request> {
        let (request, deadline) = self.slot.waiting()?;
        body.extend(request);
        Some(Request {
            deadline: Deadline::User(deadline),
        })
    }

    fn sent(&mut self, _: Duration) {
        self.slot.sent();
    }

    fn answered(&mut self, _: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        if answer.body.is_empty() {
            self.slot.finish(Err(ServiceError::BadAnswer));
            return Err(BadAnswer);
        }
        self.slot.finish(Ok(answer.body.to_vec()));
        Ok(())
    }

    fn failed(&mut self, _: Duration, error: ServiceError) {
        self.slot.finish(Err(error));
    }

    fn condition(&self, _: Duration) -> (ServiceState, String) {
        (ServiceState::Ready, "asks".into())
    }
}

type AskScript = Script<Ask>;

impl AskScript {
    fn asking() -> Self {
        Self::ready(Ic::from_protocol(Ask::default()), (4, 0))
    }

    /// Asks with 10 s of patience.
    fn ask(&mut self, what: u8) -> Ticket {
        self.ask_within(what, secs(10))
    }

    fn ask_within(&mut self, what: u8, limit: Duration) -> Ticket {
        let slot = &mut self.device.protocol.slot;
        let ticket = slot.submit(self.now, limit, vec![what; 8]).unwrap();
        self.poke();
        ticket
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.device.cancel(self.now, ticket);
        self.poke();
    }

    fn outcome(&mut self) -> Option<Result<u8, ServiceError>> {
        let outcome = self.device.protocol.slot.take()?;
        Some(outcome.result.map(|body| body[0]))
    }

    fn ignored(&self) -> u64 {
        self.device.counts().ignored
    }
}

fn new() -> AskScript {
    Script::new(Ic::from_protocol(Ask::default()))
}

#[test]
fn opening_sends_one_negotiation_with_all_versions() {
    let mut script = new();
    script.open();
    let sent = script.try_take().unwrap();
    assert_eq!(sent.meta, PacketMeta::in_band(1));
    // Pipe: data, 20 + 8 + 4 × 4 bytes; everything 0.0; transaction 1, request.
    assert_eq!(
        sent.payload[..28],
        [
            1, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 0, 0, 1, 3, 0, 0
        ]
    );
    let (frameworks, services) = listed(&sent.payload);
    assert_eq!(frameworks, Ask::FRAMEWORKS);
    assert_eq!(services, Ask::VERSIONS);
    assert_eq!(script.unread(), 0);
    assert_eq!(script.state(), ServiceState::Open);
}

#[test]
fn a_negotiation_is_never_sent_again_however_long_the_daemon_takes() {
    let mut script = new();
    script.open();
    for _ in 0..100 {
        script.advance(secs(60));
        script.poke();
    }
    assert_eq!(script.unread(), 1);
    script.negotiate((4, 0));
    assert_eq!(script.state(), ServiceState::Ready);
}

#[test]
fn a_service_without_its_daemon_says_so_after_a_moment() {
    let mut script = new();
    assert_eq!(script.state(), ServiceState::Offered);
    assert_eq!(script.device.versions(), Err(ServiceError::NotOpen));
    script.open();
    script.advance(millis(1999));
    assert_eq!(script.state(), ServiceState::Open);
    script.advance(millis(1));
    assert_eq!(script.state(), ServiceState::NoDaemon);
    assert_eq!(script.device.versions(), Err(ServiceError::NoDaemon));
    script.negotiate((3, 0));
    assert_eq!(script.state(), ServiceState::Ready);
    let status = script.device.status(script.now);
    assert_eq!(status.framework, Some(IcVersion::new(3, 0)));
    assert_eq!(status.version, Some(IcVersion::new(3, 0)));
}

#[test]
fn a_version_that_was_not_offered_is_an_error() {
    for (framework, version, named) in [
        ((3, 0), (5, 0), "5.0"),
        ((2, 0), (4, 0), "2.0"),
        ((3, 1), (4, 0), "3.1"),
        ((3, 0), (0, 0), "0.0"),
    ] {
        let mut script = new();
        script.open();
        let request = script.take();
        script.send(&negotiated(request, framework, version));
        assert_eq!(script.state(), ServiceState::Error);
        assert!(script.detail().contains(named), "{}", script.detail());
        assert_eq!(script.device.versions(), Err(ServiceError::NotNegotiated));
    }
}

#[test]
fn versions_above_the_limit_are_neither_offered_nor_accepted() {
    let mut script =
        Script::new(Ic::from_protocol(Ask::default()).up_to_version(IcVersion::new(3, 0)));
    script.open();
    let request = script.take();
    assert_eq!(listed(&request).1, [IcVersion::new(3, 0)]);
    assert_eq!(request[4], 40);
    script.send(&negotiated(request, (3, 0), (4, 0)));
    assert_eq!(script.state(), ServiceState::Error);
}

#[test]
fn having_nothing_in_common_is_an_error_until_the_channel_is_opened_again() {
    let mut script = new();
    script.open();
    let mut refusal = negotiated(script.take(), (3, 0), (4, 0));
    refusal[28..32].fill(0);
    script.send(&refusal);
    assert_eq!(script.state(), ServiceState::Error);
    assert!(script.detail().contains("no version in common"));

    // Second thoughts come too late.
    let mut late = refusal.clone();
    late[28..32].copy_from_slice(&[1, 0, 1, 0]);
    script.send(&late);
    assert_eq!((script.state(), script.ignored()), (ServiceState::Error, 1));
    assert_eq!(script.unread(), 0);

    script.close();
    assert_eq!(script.state(), ServiceState::Offered);
    script.open();
    script.negotiate((4, 0));
    assert_eq!(script.state(), ServiceState::Ready);
}

#[test]
fn an_answer_to_the_negotiation_of_an_earlier_opening_is_ignored() {
    let mut script = new();
    script.open();
    let stale = negotiated(script.take(), (3, 0), (3, 0));
    script.close();
    script.open();
    script.send(&stale);
    assert_eq!((script.state(), script.ignored()), (ServiceState::Open, 1));
    script.negotiate((4, 0));
    assert_eq!(script.device.protocol.connections, 1);
}

#[test]
fn a_request_carries_the_agreed_versions_and_a_fresh_id() {
    let mut script = AskScript::asking();
    script.ask(7);
    let sent = script.try_take().unwrap();
    assert_eq!(sent.meta, PacketMeta::in_band(2));
    assert_eq!(
        sent.payload[..28],
        [
            1, 0, 0, 0, 28, 0, 0, 0, 3, 0, 0, 0, 2, 0, 4, 0, 0, 0, 8, 0, 0, 0, 0, 0, 2, 3, 0, 0
        ]
    );
    assert_eq!(sent.payload[28..36], [7; 8]);
    script.send(&answer(sent.payload, 0));
    assert_eq!(script.outcome(), Some(Ok(7)));
    assert_eq!(script.outcome(), None);
}

#[test]
fn a_second_request_is_refused_while_one_is_outstanding() {
    let mut script = AskScript::asking();
    script.ask(7);
    let slot = &mut script.device.protocol.slot;
    let refused = slot.submit(secs(0), secs(1), vec![8]);
    assert_eq!(refused, Err(ServiceError::Busy));
    assert_eq!(script.unread(), 1);
}

#[test]
fn only_the_answer_with_id_type_and_flag_counts() {
    let mut script = AskScript::asking();
    script.ask(7);
    let good = answer(script.take(), 0);
    let wrong = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let bad = [
        wrong(24, 1),   // the negotiation's id
        wrong(24, 3),   // an id that comes later
        wrong(12, 0),   // a negotiation
        wrong(12, 3),   // another service's
        wrong(25, 3),   // a request
        wrong(0, 2),    // no data
        wrong(4, 255),  // a frame longer than the packet
        wrong(4, 19),   // shorter than its header
        wrong(18, 255), // a body longer than the frame
        good[..35].to_vec(),
        good[..27].to_vec(),
        Vec::new(),
    ];
    for bytes in &bad {
        script.send(bytes);
    }
    script.send_as(PacketType::COMPLETION, &good);
    assert_eq!(script.ignored(), bad.len() as u64 + 1);
    assert_eq!(script.outcome(), None);
    assert_eq!(script.state(), ServiceState::Ready);

    script.send(&good);
    assert_eq!(script.outcome(), Some(Ok(7)));
}

#[test]
fn an_answer_comes_once() {
    let mut script = AskScript::asking();
    script.ask(7);
    let good = answer(script.take(), 0);
    script.send(&good);
    script.send(&good);
    script.ask(8);
    script.send(&good);
    assert_eq!(script.ignored(), 2);
    assert_eq!(script.outcome(), Some(Ok(7)));
}

#[test]
fn a_request_that_is_not_answered_in_time_times_out() {
    let mut script = AskScript::asking();
    script.ask(7);
    script.take();
    script.advance(millis(9_999));
    assert_eq!(script.outcome(), None);
    script.advance(millis(1));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Timeout)));
    assert_eq!(script.state(), ServiceState::Ready);
    assert!(script.device.versions().is_ok());
}

#[test]
fn a_request_that_is_not_even_read_means_that_the_daemon_is_gone() {
    let mut script = AskScript::asking();
    script.ask(7);
    script.advance(millis(1_499));
    assert_eq!(script.outcome(), None);
    script.advance(millis(1));
    assert_eq!(script.outcome(), Some(Err(ServiceError::NoDaemon)));
    assert_eq!(script.state(), ServiceState::NoDaemon);
    assert_eq!(script.detail(), "the guest's daemon has stopped");
    assert_eq!(script.device.versions(), Err(ServiceError::NoDaemon));
    // It comes back, and finds what was asked.
    script.advance(secs(3600));
    assert_eq!(script.unread(), 1);
    let request = script.take();
    script.send(&answer(request, 0));
    assert_eq!(script.outcome(), None);
    assert_eq!(script.device.counts().late, 1);
    assert_eq!(script.state(), ServiceState::Ready);
    script.ask(8);
    let request = script.take();
    script.send(&answer(request, 0));
    assert_eq!(script.outcome(), Some(Ok(8)));
}

#[test]
fn a_pause_is_no_reason_to_call_a_request_unread() {
    let mut script = AskScript::asking();
    script.ask_within(7, secs(3600));
    script.advance(millis(1_000));
    script.pause();
    script.advance(secs(60));
    script.resume();
    script.advance(millis(499));
    assert_eq!(script.outcome(), None);
    script.advance(millis(1));
    assert_eq!(script.outcome(), Some(Err(ServiceError::NoDaemon)));
}

#[test]
fn a_late_answer_is_swallowed_and_lets_the_next_request_go() {
    let mut script = AskScript::asking();
    script.ask(7);
    let late = script.take();
    script.advance(secs(10));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Timeout)));

    // The guest reads one packet per signal: the second waits here.
    script.ask(8);
    assert_eq!(script.unread(), 0);
    script.advance(secs(3));
    script.send(&answer(late, 0));
    assert_eq!(script.outcome(), None);
    assert_eq!(script.device.counts().late, 1);

    let request = script.take();
    assert_eq!(request[28], 8);
    script.send(&answer(request, 0));
    assert_eq!(script.outcome(), Some(Ok(8)));
    assert_eq!(script.ignored(), 0);
}

#[test]
fn only_the_answer_that_is_owed_lets_the_next_request_go() {
    let mut script = AskScript::asking();
    script.ask(7);
    let late = answer(script.take(), 0);
    script.advance(secs(10));
    script.ask(8);
    for id in [1, 3] {
        let mut other = late.clone();
        other[24] = id;
        script.send(&other);
    }
    assert_eq!((script.ignored(), script.unread()), (2, 0));
    script.send(&late);
    assert_eq!(script.unread(), 1);
}

#[test]
fn a_request_behind_one_that_is_never_answered_times_out_unsent() {
    let mut script = AskScript::asking();
    script.ask(7);
    script.take();
    script.advance(secs(10));
    script.outcome();
    script.ask(8);
    script.advance(secs(10));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Unsent)));
    assert_eq!(ServiceError::Unsent.code(), "timeout");
    assert_eq!(script.unread(), 0);
}

#[test]
fn closing_ends_the_request_and_reopening_starts_over() {
    let mut script = AskScript::asking();
    script.ask(7);
    let stale = answer(script.take(), 0);
    script.close();
    assert_eq!(script.outcome(), Some(Err(ServiceError::NotOpen)));
    assert_eq!(script.device.next_deadline(), None);

    script.open();
    script.send(&stale);
    script.negotiate((4, 0));
    script.ask(8);
    script.send(&stale);
    assert_eq!(script.outcome(), None);
    assert_eq!(script.ignored(), 2);
}

#[test]
fn what_the_guest_owed_is_forgiven_when_it_reopens() {
    let mut script = AskScript::asking();
    script.ask(7);
    script.advance(secs(10));
    script.close();
    script.open();
    script.negotiate((4, 0));
    script.ask(8);
    assert_eq!(script.unread(), 1);
}

#[test]
fn opening_twice_without_closing_starts_over() {
    let mut script = AskScript::asking();
    script.ask(7);
    script.open();
    assert_eq!(script.outcome(), Some(Err(ServiceError::NotOpen)));
    assert_eq!(script.state(), ServiceState::Open);
}

#[test]
fn a_full_ring_delays_and_is_not_tried_again_before_there_is_room() {
    let mut script = new();
    script.ring.refuses = Some(SendError::Full);
    script.open();
    assert_eq!(script.unread(), 0);
    script.ring.refuses = None;
    script.poke();
    script.negotiate((4, 0));

    script.ring.refuses = Some(SendError::Full);
    script.ask(7);
    script.ring.refuses = None;
    // A packet of the guest's is no sign of room.
    script.send(&[]);
    assert_eq!(script.unread(), 0);
    script.poke();
    assert_eq!(script.unread(), 1);
}

#[test]
fn a_request_that_finds_no_room_in_time_times_out() {
    let mut script = AskScript::asking();
    script.ring.refuses = Some(SendError::Full);
    script.ask(7);
    script.advance(secs(10));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Unsent)));
}

#[test]
fn a_ring_too_small_for_a_negotiation_is_an_error() {
    let mut script = new();
    script.ring.refuses = Some(SendError::TooLarge);
    script.open();
    assert_eq!(script.state(), ServiceState::Error);
    assert_eq!(script.device.link_error(), Some(LinkError::SmallRing));
}

#[test]
fn a_request_too_large_for_the_ring_is_unsupported() {
    let mut script = AskScript::asking();
    script.ring.refuses = Some(SendError::TooLarge);
    script.ask(7);
    let outcome = script.outcome().unwrap().unwrap_err();
    assert_eq!(outcome.code(), "unsupported");
    script.ring.refuses = None;
    script.ask(8);
    assert_eq!(script.unread(), 1);
}

#[test]
fn an_answer_without_its_body_is_bad_and_counted() {
    let mut script = AskScript::asking();
    script.ask(7);
    let mut short = answer(script.take(), 0);
    short[18] = 0;
    script.send(&short);
    assert_eq!(script.outcome(), Some(Err(ServiceError::BadAnswer)));
    assert_eq!(script.ignored(), 1);
}

#[test]
fn a_users_deadline_comes_while_the_vm_is_paused() {
    let mut script = AskScript::asking();
    script.ask(7);
    let late = script.take();
    script.advance(secs(9));
    script.pause();
    assert_eq!(script.device.next_deadline(), Some(script.now + secs(1)));
    script.advance(millis(999));
    assert_eq!(script.outcome(), None);
    script.advance(millis(1));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Timeout)));
    assert_eq!(script.device.next_deadline(), None);
    // The guest answers when it goes on, and is asked the next.
    script.resume();
    script.ask(8);
    assert_eq!(script.unread(), 0);
    script.send(&answer(late, 0));
    assert_eq!((script.unread(), script.device.counts().late), (1, 1));
}

#[test]
fn a_request_that_waits_for_its_turn_ends_in_time_while_the_vm_is_paused() {
    let mut script = AskScript::asking();
    script.ask(7);
    let late = script.take();
    script.advance(secs(10));
    script.outcome();
    script.ask(8);
    script.advance(secs(1));
    script.pause();
    script.advance(secs(9));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Unsent)));
    script.resume();
    script.send(&answer(late, 0));
    assert_eq!(script.unread(), 0, "it is not sent any more");
}

#[test]
fn nothing_can_be_asked_of_a_guest_that_is_paused() {
    let mut script = AskScript::asking();
    script.pause();
    script.pause();
    let refused = script.device.admit().unwrap_err();
    assert_eq!((refused.code(), refused.layer()), ("busy", "vm"));
    assert_eq!(script.device.next_deadline(), None);
    script.advance(secs(100));
    assert_eq!(script.unread(), 0);
    script.resume();
    script.resume();
    assert!(script.device.admit().is_ok());
}

#[test]
fn nothing_that_waits_is_sent_while_the_vm_is_paused() {
    let mut script = AskScript::asking();
    script.pause();
    script.ask(7);
    assert_eq!(script.unread(), 0);
    script.advance(secs(8));
    script.resume();
    assert_eq!(script.unread(), 1);
}

#[test]
fn a_cancelled_request_that_waits_for_its_turn_is_never_sent() {
    for paused in [false, true] {
        let mut script = AskScript::asking();
        script.ask(7);
        let first = script.take();
        script.advance(secs(10));
        script.outcome();
        let ticket = script.ask(8);
        if paused {
            script.pause();
        }
        script.cancel(Ticket(ticket.0 + 1));
        script.cancel(ticket);
        script.cancel(ticket);
        script.resume();
        script.send(&answer(first, 0));
        assert_eq!((script.unread(), script.outcome()), (0, None));
        script.ask(9);
        assert_eq!(script.unread(), 1, "there is room for another");
    }
}

#[test]
fn the_answer_to_a_cancelled_request_is_nobodys() {
    for paused in [false, true] {
        let mut script = AskScript::asking();
        let ticket = script.ask_within(7, secs(3600));
        let late = script.take();
        if paused {
            script.pause();
        }
        script.cancel(ticket);
        script.outcome();
        // Whoever comes next does not wait for the first one's deadline.
        script.resume();
        script.ask(8);
        script.send(&answer(late, 0));
        assert_eq!(script.device.counts().late, 1);
        let request = script.take();
        script.send(&answer(request, 0));
        assert_eq!(script.outcome(), Some(Ok(8)));
        script.cancel(ticket);
        assert_eq!(script.outcome(), None);
    }
}

#[test]
fn ids_wrap_around() {
    let mut script = AskScript::asking();
    for round in 0..600_u32 {
        script.ask(1);
        let request = script.take();
        assert_eq!(u32::from(request[24]), (round + 2) % 256);
        script.send(&answer(request, 0));
        assert_eq!(script.outcome(), Some(Ok(1)));
    }
    assert_eq!(script.device.counts().answered, 601);
}

#[test]
fn packets_before_the_channel_is_open_are_ignored() {
    let mut script = new();
    script.send(&[1; 64]);
    assert_eq!(script.ignored(), 1);
    assert_eq!(script.unread(), 0);
}
