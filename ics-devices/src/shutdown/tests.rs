// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shutdown requests, with a guest that the test plays.

use super::*;
use crate::script::{Script, answer, listed, secs};
use crate::wire::HResult;

type Asking = Script<ShutdownProtocol>;

const LIMIT: Duration = secs(60);

fn ready(version: (u16, u16)) -> Asking {
    Script::ready(Shutdown::new(), version)
}

impl Asking {
    fn ask(&mut self, request: ShutdownRequest) -> Result<Ticket, ServiceError> {
        let asked = self.device.request(self.now, request, LIMIT);
        self.poke();
        asked
    }

    fn ask_for(&mut self, action: ShutdownAction) -> Result<Ticket, ServiceError> {
        self.ask(ShutdownRequest::new(action))
    }

    fn outcome(&mut self) -> Option<Result<Accepted, ServiceError>> {
        self.device.take_outcome().map(|outcome| outcome.result)
    }
}

fn flags(request: &[u8]) -> u32 {
    u32::from_le_bytes(request[36..40].try_into().unwrap())
}

#[test]
fn a_request_is_2088_bytes_long_and_begins_with_these() {
    let mut script = ready((3, 2));
    let request = ShutdownRequest {
        force: true,
        grace: secs(300),
        message: "Hi \u{1f980}".into(),
        ..ShutdownRequest::new(ShutdownAction::Reboot)
    };
    script.ask(request).unwrap();
    let bytes = script.take();
    #[rustfmt::skip]
    let head = [
        1, 0, 0, 0, 0x20, 0x08, 0, 0, // pipe: data, 20 + 2060
        3, 0, 0, 0, 3, 0, 3, 0, 2, 0, 0x0c, 0x08, // 3.0, shutdown, 3.2, body of 2060
        0, 0, 0, 0, 2, 3, 0, 0, // status 0, transaction 2, request
        0, 0, 0, 0x80, 0x2c, 0x01, 0, 0, 3, 0, 0, 0, // planned, 300 s, reboot by force
        b'H', 0, b'i', 0, b' ', 0, 0x3e, 0xd8, 0x80, 0xdd, // UTF-16
    ];
    assert_eq!(bytes.len(), 2088);
    assert_eq!(bytes[..head.len()], head);
    assert!(bytes[head.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn all_four_versions_are_offered() {
    let mut script = Script::new(Shutdown::new());
    script.open();
    let versions = [(1, 0), (3, 0), (3, 1), (3, 2)].map(|(a, b)| IcVersion::new(a, b));
    assert_eq!(listed(&script.take()).1, versions);
}

#[test]
fn actions_and_force_are_the_protocols_flags() {
    for (action, force, expected) in [
        (ShutdownAction::PowerOff, false, 0),
        (ShutdownAction::PowerOff, true, 1),
        (ShutdownAction::Reboot, false, 2),
        (ShutdownAction::Reboot, true, 3),
        (ShutdownAction::Hibernate, false, 4),
        (ShutdownAction::Hibernate, true, 5),
    ] {
        let mut script = ready((3, 2));
        let request = ShutdownRequest {
            force,
            ..ShutdownRequest::new(action)
        };
        script.ask(request).unwrap();
        assert_eq!(flags(&script.take()), expected);
    }
}

#[test]
fn a_message_that_is_too_long_is_cut_between_characters_and_terminated() {
    let mut script = ready((3, 2));
    let request = ShutdownRequest {
        // An odd unit, then pairs: the last pair does not fit.
        message: format!("ab{}", "\u{1f980}".repeat(600)),
        ..ShutdownRequest::new(ShutdownAction::PowerOff)
    };
    script.ask(request).unwrap();
    let bytes = script.take();
    assert_eq!(bytes.len(), 2088);
    let units: Vec<u16> = bytes[40..]
        .chunks(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .collect();
    let end = units.iter().position(|unit| *unit == 0).unwrap();
    assert_eq!(end, 1022);
    assert!(String::from_utf16(&units[..end]).is_ok());
}

#[test]
fn success_means_that_the_guest_accepted() {
    let mut script = ready((3, 2));
    let ticket = script.ask_for(ShutdownAction::PowerOff).unwrap();
    assert_eq!(script.detail(), "power-off asked for");
    let request = script.take();
    script.send(&answer(request, 0));
    let action = ShutdownAction::PowerOff;
    let result = Ok(Accepted { action });
    assert_eq!(
        script.device.take_outcome(),
        Some(Outcome { ticket, result })
    );
    script.advance(secs(3));
    assert_eq!(script.detail(), "power-off accepted by the guest 3.0 s ago");
}

#[test]
fn a_refusal_is_told_with_the_guests_status() {
    let mut script = ready((3, 2));
    script.ask_for(ShutdownAction::Hibernate).unwrap();
    let request = script.take();
    script.send(&answer(request, 0x8000_4005));
    let error = ServiceError::Guest(HResult::FAIL);
    assert_eq!(script.outcome(), Some(Err(error)));
    assert!(script.detail().starts_with("hibernate failed 0.0 s ago: "));
    // It can be asked again.
    script.ask_for(ShutdownAction::PowerOff).unwrap();
    assert_eq!(flags(&script.take()), 0);
}

#[test]
fn silence_is_a_timeout() {
    let mut script = ready((3, 2));
    script.ask_for(ShutdownAction::PowerOff).unwrap();
    script.advance(LIMIT);
    assert_eq!(script.outcome(), Some(Err(ServiceError::Timeout)));
}

#[test]
fn a_second_request_is_busy() {
    let mut script = ready((3, 2));
    script.ask_for(ShutdownAction::PowerOff).unwrap();
    let refused = script.ask_for(ShutdownAction::Reboot);
    assert_eq!(refused, Err(ServiceError::Busy));
    assert_eq!(script.unread(), 1);
}

#[test]
fn a_late_refusal_is_not_the_answer_to_the_next_request() {
    let mut script = ready((3, 2));
    script.ask_for(ShutdownAction::Hibernate).unwrap();
    let late = script.take();
    script.advance(LIMIT);
    script.outcome();
    script.ask_for(ShutdownAction::PowerOff).unwrap();
    script.send(&answer(late, 0x8000_4005));
    assert_eq!(script.outcome(), None);
    let request = script.take();
    script.send(&answer(request, 0));
    let action = ShutdownAction::PowerOff;
    assert_eq!(script.outcome(), Some(Ok(Accepted { action })));
}

#[test]
fn an_older_version_does_what_it_can() {
    use ShutdownAction::{Hibernate, PowerOff, Reboot};
    let all = [PowerOff, Reboot, Hibernate];
    for (version, can) in [
        ((1, 0), [true, false, false]),
        ((3, 0), [true, false, false]),
        ((3, 1), [true, true, false]),
        ((3, 2), [true, true, true]),
    ] {
        for (action, can) in all.into_iter().zip(can) {
            let mut script = ready(version);
            let asked = script.ask_for(action);
            assert_eq!(asked.is_ok(), can, "{action} with {version:?}");
            if let Err(error) = asked {
                assert_eq!((error.code(), script.unread()), ("unsupported", 0));
            }
        }
    }
}

#[test]
fn without_a_driver_or_a_version_the_request_names_what_is_missing() {
    let mut script = Script::new(Shutdown::new());
    let ask = |script: &mut Asking| script.ask_for(ShutdownAction::PowerOff);
    assert_eq!(ask(&mut script), Err(ServiceError::NotOpen));
    script.open();
    assert_eq!(ask(&mut script), Err(ServiceError::NotNegotiated));
    script.negotiate((3, 2));
    assert!(ask(&mut script).is_ok());
}

#[test]
fn a_channel_that_closes_ends_the_request() {
    let mut script = ready((3, 2));
    let ticket = script.ask_for(ShutdownAction::PowerOff).unwrap();
    script.close();
    let result = Err(ServiceError::NotOpen);
    assert_eq!(
        script.device.take_outcome(),
        Some(Outcome { ticket, result })
    );
}

#[test]
fn an_abandoned_shutdown_that_was_not_sent_is_not_sent_after_a_pause() {
    let mut script = ready((3, 2));
    script.ask_for(ShutdownAction::Reboot).unwrap();
    let owed = script.take();
    script.advance(LIMIT);
    script.outcome();
    let ticket = script.ask_for(ShutdownAction::PowerOff).unwrap();
    script.pause();
    script.device.cancel(script.now, ticket);
    script.resume();
    script.send(&answer(owed, 0));
    assert_eq!(script.unread(), 0);
}

#[test]
fn a_shutdown_in_a_pause_is_refused_or_ends_in_its_own_time() {
    let mut script = ready((3, 2));
    script.ask_for(ShutdownAction::PowerOff).unwrap();
    script.pause();
    let refused = script.ask_for(ShutdownAction::PowerOff);
    assert_eq!(refused, Err(ServiceError::Paused));
    script.advance(LIMIT);
    assert_eq!(script.outcome(), Some(Err(ServiceError::Timeout)));
}
