// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Freezing and thawing, with a guest that the test plays: packet by packet, or
//! as Linux's driver and daemon do.

use proptest::prelude::*;

use super::*;
use crate::script::{Script, answer, listed, millis, secs};

type Backup = Script<VssProtocol>;

const MAX: Duration = secs(10);
const FREEZE: VssRequest = VssRequest::Freeze { max: MAX };

/// The guest's driver and its daemon.
#[derive(Debug)]
struct Guest {
    daemon: bool,
    frozen: bool,
    /// A file system refuses.
    refuses: bool,
    operations: Vec<u8>,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            daemon: true,
            frozen: false,
            refuses: false,
            operations: Vec::new(),
        }
    }
}

impl Guest {
    fn reply(&mut self, request: Vec<u8>) -> Vec<u8> {
        let operation = request[28];
        self.operations.push(operation);
        let ok = match operation {
            4 => true,
            _ if !self.daemon => false,
            5 if self.refuses => false,
            5 | 6 => {
                self.frozen = operation == 5;
                true
            }
            _ => true,
        };
        answer(request, if ok { 0 } else { HResult::FAIL.0 })
    }
}

impl Backup {
    fn backup(guest: &mut Guest) -> Self {
        let mut script = Self::ready(Vss::new(), (5, 0));
        script.serve(guest);
        guest.operations.clear();
        script
    }

    fn ask(&mut self, request: VssRequest) -> Result<Ticket, ServiceError> {
        let asked = self.device.request(self.now, request);
        self.poke();
        asked
    }

    fn serve(&mut self, guest: &mut Guest) {
        while let Some(sent) = self.try_take() {
            let reply = guest.reply(sent.payload);
            self.send(&reply);
        }
    }

    fn does(&mut self, guest: &mut Guest, request: VssRequest) -> Result<VssAnswer, ServiceError> {
        self.ask(request)?;
        self.serve(guest);
        self.outcome().expect("an outcome")
    }

    fn outcome(&mut self) -> Option<Result<VssAnswer, ServiceError>> {
        self.device.take_outcome().map(|outcome| outcome.result)
    }
}

#[test]
fn only_the_version_that_linux_knows_is_offered() {
    let mut script = Script::new(Vss::new());
    script.open();
    let versions = listed(&script.take());
    assert_eq!(
        versions,
        (vec![IcVersion::new(3, 0)], vec![IcVersion::new(5, 0)])
    );
}

#[test]
fn a_request_is_40_bytes_long_and_begins_with_these() {
    let mut script = Script::ready(Vss::new(), (5, 0));
    let bytes = script.take();
    #[rustfmt::skip]
    assert_eq!(bytes, [
        1, 0, 0, 0, 32, 0, 0, 0, // pipe: data, 20 + 12
        3, 0, 0, 0, 5, 0, 5, 0, 0, 0, 12, 0, // 3.0, VSS, 5.0, body of 12
        0, 0, 0, 0, 2, 3, 0, 0, // status 0, transaction 2, request
        2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // hot backup?
    ]);
}

#[test]
fn a_freeze_checks_freezes_and_a_thaw_thaws_and_completes() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    let until = MAX;
    assert_eq!(
        script.does(&mut guest, FREEZE),
        Ok(VssAnswer::Frozen { until })
    );
    assert!(guest.frozen);
    script.advance(secs(2));
    assert_eq!(
        script.detail(),
        "file systems frozen for 2.0 s, thawed in 8.0 s"
    );
    let was_frozen = true;
    assert_eq!(
        script.does(&mut guest, VssRequest::Thaw),
        Ok(VssAnswer::Thawed { was_frozen })
    );
    assert_eq!(guest.operations, [2, 5, 6, 4]);
    assert_eq!(script.device.filesystems(), Filesystems::Thawed);
    assert_eq!(script.device.expired(), 0);
}

#[test]
fn a_freeze_thaws_itself_at_its_deadline() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.does(&mut guest, FREEZE).unwrap();
    script.advance(millis(9_999));
    script.serve(&mut guest);
    assert!(guest.frozen);
    script.advance(millis(1));
    script.serve(&mut guest);
    assert!(!guest.frozen);
    assert_eq!(script.device.expired(), 1);
    assert_eq!(script.device.filesystems(), Filesystems::Thawed);
    // Who thaws now learns that it was too late.
    let was_frozen = false;
    assert_eq!(
        script.does(&mut guest, VssRequest::Thaw),
        Ok(VssAnswer::Thawed { was_frozen })
    );
}

#[test]
fn a_freeze_needs_a_deadline_that_makes_sense_and_one_is_enough() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    for max in [Duration::ZERO, MAX_FREEZE + millis(1)] {
        let refused = script.ask(VssRequest::Freeze { max });
        assert_eq!(refused.unwrap_err().code(), "unsupported");
    }
    script.does(&mut guest, FREEZE).unwrap();
    assert_eq!(script.ask(FREEZE), Err(ServiceError::Busy));
}

#[test]
fn without_a_daemon_nothing_is_frozen_and_the_reason_is_told() {
    let mut guest = Guest {
        daemon: false,
        ..Guest::default()
    };
    let mut script = Backup::backup(&mut guest);
    assert_eq!(script.state(), ServiceState::NoDaemon);
    for request in [FREEZE, VssRequest::Check, VssRequest::Thaw] {
        assert_eq!(
            script.does(&mut guest, request),
            Err(ServiceError::NoDaemon)
        );
    }
    assert!(!guest.operations.contains(&5));
    // It comes, and is seen without anybody asking; then it is left alone.
    guest.daemon = true;
    script.advance(secs(5));
    script.serve(&mut guest);
    assert_eq!(script.state(), ServiceState::Ready);
    assert_eq!(script.device.next_deadline(), None);
}

#[test]
fn a_freeze_that_a_file_system_refuses_is_thawed_as_well() {
    let mut guest = Guest {
        refuses: true,
        ..Guest::default()
    };
    let mut script = Backup::backup(&mut guest);
    assert_eq!(
        script.does(&mut guest, FREEZE),
        Err(ServiceError::Guest(HResult::FAIL))
    );
    assert_eq!(guest.operations, [2, 5, 6, 4]);
    assert_eq!(script.device.filesystems(), Filesystems::Thawed);
}

#[test]
fn a_freeze_that_is_answered_too_late_is_thawed_at_once() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.ask(FREEZE).unwrap();
    let check = script.take();
    script.advance(secs(4));
    let check = guest.reply(check);
    script.send(&check);
    let freeze = script.take();
    script.advance(secs(6));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Timeout)));
    assert_eq!(script.device.filesystems(), Filesystems::MaybeFrozen);
    script.advance(secs(600));
    assert_eq!(script.unread(), 0, "the guest owes an answer");
    let freeze = guest.reply(freeze);
    assert!(guest.frozen);
    script.send(&freeze);
    script.serve(&mut guest);
    assert!(!guest.frozen);
    assert_eq!(script.device.filesystems(), Filesystems::Thawed);
}

#[test]
fn a_daemon_killed_while_frozen_is_asked_until_its_successor_thaws() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.does(&mut guest, FREEZE).unwrap();
    guest.daemon = false;
    assert_eq!(
        script.does(&mut guest, VssRequest::Thaw),
        Err(ServiceError::NoDaemon)
    );
    assert_eq!(script.device.filesystems(), Filesystems::MaybeFrozen);
    assert_eq!(script.state(), ServiceState::NoDaemon);
    for _ in 0..20 {
        script.advance(secs(1));
        script.serve(&mut guest);
    }
    assert!(guest.frozen);
    guest.daemon = true;
    script.advance(secs(1));
    script.serve(&mut guest);
    assert!(!guest.frozen);
    assert_eq!(script.device.filesystems(), Filesystems::Thawed);
    assert_eq!(script.state(), ServiceState::Ready);
}

#[test]
fn a_channel_that_closes_while_frozen_is_thawed_when_it_opens_again() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.does(&mut guest, FREEZE).unwrap();
    script.close();
    assert_eq!(script.device.filesystems(), Filesystems::MaybeFrozen);
    script.advance(secs(60));
    script.open();
    script.negotiate((5, 0));
    assert_eq!(script.unread(), 1);
    script.serve(&mut guest);
    assert!(!guest.frozen);
    assert_eq!(guest.operations[2], 6, "before all else");
}

#[test]
fn a_freeze_whose_deadline_comes_in_a_pause_is_thawed_as_soon_as_the_vm_goes_on() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.does(&mut guest, FREEZE).unwrap();
    script.advance(secs(4));
    script.pause();
    assert_eq!(
        script.detail(),
        "file systems frozen for 4.0 s, thawed in 6.0 s"
    );
    script.advance(secs(6));
    assert_eq!(
        script.detail(),
        "file systems frozen, thawed as soon as the VM goes on"
    );
    assert_eq!((script.unread(), script.device.expired()), (0, 0));
    script.advance(secs(3600));
    script.resume();
    assert_eq!((script.unread(), script.device.expired()), (1, 1));
    script.serve(&mut guest);
    assert!(!guest.frozen);
    assert_eq!(script.device.filesystems(), Filesystems::Thawed);
}

#[test]
fn a_short_pause_leaves_a_freeze_its_deadline() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.does(&mut guest, FREEZE).unwrap();
    script.advance(secs(4));
    script.pause();
    script.advance(secs(3));
    script.resume();
    assert_eq!(
        script.detail(),
        "file systems frozen for 7.0 s, thawed in 3.0 s"
    );
    script.advance(secs(3));
    script.serve(&mut guest);
    assert!(!guest.frozen);
}

#[test]
fn a_thaw_asked_for_in_a_pause_is_busy_and_comes_when_the_vm_goes_on() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.does(&mut guest, FREEZE).unwrap();
    script.pause();
    assert_eq!(script.ask(VssRequest::Thaw), Err(ServiceError::Paused));
    assert_eq!(script.ask(VssRequest::Check), Err(ServiceError::Paused));
    script.resume();
    script.serve(&mut guest);
    assert!(!guest.frozen);
    assert_eq!(script.device.expired(), 0, "its time was not up");
}

#[test]
fn a_freeze_that_nobody_waits_for_any_more_is_thawed() {
    // Before the check is answered, between it and the freeze, while it freezes.
    for replies in 0..3 {
        let mut guest = Guest::default();
        let mut script = Backup::backup(&mut guest);
        let ticket = script.ask(FREEZE).unwrap();
        let mut late = None;
        for reply in 0..replies {
            let answer = guest.reply(script.take());
            if reply == 1 {
                late = Some(answer);
            } else {
                script.send(&answer);
            }
        }
        script.device.cancel(script.now, ticket);
        script.poke();
        if let Some(late) = late {
            assert!(guest.frozen);
            script.send(&late);
        }
        script.serve(&mut guest);
        script.advance(secs(1));
        script.serve(&mut guest);
        assert!(!guest.frozen, "{replies}");
        assert_eq!(script.device.filesystems(), Filesystems::Thawed);
        assert!(script.does(&mut guest, FREEZE).is_ok(), "{replies}");
    }
}

#[test]
fn whoever_froze_them_and_is_gone_needs_them_thawed() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.device.thaw_soon(script.now);
    script.poke();
    assert_eq!(script.unread(), 0, "nothing is frozen");
    script.does(&mut guest, FREEZE).unwrap();
    script.device.thaw_soon(script.now);
    script.poke();
    script.serve(&mut guest);
    assert!(!guest.frozen);
}

#[test]
fn the_service_is_needed_until_the_guest_has_thawed_or_had_the_time_to() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    let needed = |script: &Backup| script.device.needed(script.now);
    assert_eq!(needed(&script), None);
    script.ask(FREEZE).unwrap();
    let check = guest.reply(script.take());
    script.send(&check);
    assert_eq!(needed(&script), Some(Needed::Frozen));
    // It never answers: from the deadline on it is asked to thaw, as it were.
    script.advance(MAX);
    let left = THAW_PATIENCE;
    assert_eq!(needed(&script), Some(Needed::Thawing { left }));
    script.pause();
    script.advance(secs(3600));
    assert_eq!(needed(&script), Some(Needed::Thawing { left }));
    script.resume();
    script.advance(THAW_PATIENCE.saturating_sub(millis(1)));
    let left = millis(1);
    assert_eq!(needed(&script), Some(Needed::Thawing { left }));
    // Nor does it help to close the channel, and to open it again.
    script.close();
    script.open();
    script.negotiate((5, 0));
    script.advance(millis(1));
    assert_eq!(needed(&script), None);
}

#[test]
fn a_guest_that_refuses_to_thaw_cannot_keep_the_service() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.does(&mut guest, FREEZE).unwrap();
    assert_eq!(script.device.needed(script.now), Some(Needed::Frozen));
    guest.daemon = false;
    assert!(script.does(&mut guest, VssRequest::Thaw).is_err());
    for _ in 0..THAW_PATIENCE.as_secs() {
        assert!(script.device.needed(script.now).is_some());
        script.advance(secs(1));
        script.serve(&mut guest);
    }
    assert_eq!(script.device.needed(script.now), None);
    assert!(guest.frozen);
    // The next device begins with it, and a freeze is one of its own.
    let device = Vss::new().thawing_first(Duration::ZERO);
    let left = THAW_PATIENCE;
    let needed = device.needed(Duration::ZERO);
    assert_eq!(needed, Some(Needed::Thawing { left }));
    assert_eq!(device.needed(THAW_PATIENCE), None, "nobody opens it");
    let mut script = Script::ready(device, (5, 0));
    guest.daemon = true;
    script.serve(&mut guest);
    assert!(!guest.frozen);
    assert_eq!(script.device.filesystems(), Filesystems::Thawed);
    script.does(&mut guest, FREEZE).unwrap();
    assert_eq!(script.device.needed(script.now), Some(Needed::Frozen));
}

#[test]
fn a_thaw_that_times_out_is_sent_again_when_the_guest_is_back() {
    let mut guest = Guest::default();
    let mut script = Backup::backup(&mut guest);
    script.does(&mut guest, FREEZE).unwrap();
    script.ask(VssRequest::Thaw).unwrap();
    let lost = script.take();
    script.advance(secs(35));
    assert_eq!(script.outcome(), Some(Err(ServiceError::Timeout)));
    script.send(&answer(lost, HResult::FAIL.0));
    script.advance(secs(1));
    script.serve(&mut guest);
    assert!(!guest.frozen);
    assert_eq!(script.device.filesystems(), Filesystems::Thawed);
}

proptest! {
    /// Whatever happens: a guest whose daemon lives is not frozen a second
    /// after its deadline, and the service never says that it is thawed while
    /// it is not.
    #[test]
    fn frozen_never_lasts(
        steps in prop::collection::vec((0..9_u8, 0..4000_u16), 0..80),
    ) {
        let mut guest = Guest::default();
        let mut script = Backup::backup(&mut guest);
        for (step, wait) in steps {
            match step {
                0 | 1 => drop(script.ask(FREEZE)),
                2 => drop(script.ask(VssRequest::Thaw)),
                3 => guest.daemon = !guest.daemon,
                4 => script.advance(Duration::from_millis(wait.into())),
                5 => guest.refuses = !guest.refuses,
                6 => {
                    script.close();
                    script.open();
                    script.negotiate((5, 0));
                }
                _ => {
                    if let Some(sent) = script.try_take() {
                        let reply = guest.reply(sent.payload);
                        script.send(&reply);
                    }
                }
            }
            script.outcome();
            prop_assert!(!(guest.frozen && script.device.filesystems() == Filesystems::Thawed));
        }
        guest.daemon = true;
        script.serve(&mut guest);
        for _ in 0..12 {
            script.advance(secs(1));
            script.serve(&mut guest);
        }
        prop_assert!(!guest.frozen);
        prop_assert_eq!(script.device.filesystems(), Filesystems::Thawed);
    }
}
