// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Versions, contacts, UNLOAD, resets (protocol 4.2 to 4.5, 4.11).

use super::*;
use crate::host::Host;

#[test]
fn these_versions_are_accepted_and_no_others() {
    let table = [
        ("0.13", false),
        ("1.1", false),
        ("2.3", false),
        ("2.4", true),
        ("3.0", true),
        ("4.0", true),
        ("4.1", true),
        ("4.2", false),
        ("5.0", true),
        ("5.1", true),
        ("5.2", true),
        ("5.3", true),
        ("5.4", false),
        ("6.0", false),
        ("65535.65535", false),
    ];
    for (version, accepted) in table {
        let mut guest = MockGuest::new(1);
        assert_eq!(
            guest.connect(version.parse().unwrap()),
            accepted,
            "{version}"
        );
        assert_eq!(guest.host().session().is_some(), accepted);
        assert_eq!(violations(&guest), 0, "asking is no fault");
    }
}

#[test]
fn a_linux_guest_settles_on_the_newest_version_up_to_the_limit() {
    let tried = [
        "6.0", "5.3", "5.2", "5.1", "5.0", "4.1", "4.0", "3.0", "2.4",
    ];
    for (limit, expected) in [
        ("5.3", "5.3"),
        ("4.0", "4.0"),
        ("9.0", "5.3"),
        ("5.0", "5.0"),
    ] {
        let mut guest = MockGuest::with_config(BusConfig {
            vps: 1,
            max_version: limit.parse().unwrap(),
        });
        let versions = tried.iter().map(|version| version.parse().unwrap());
        let settled = versions.into_iter().find(|version| guest.connect(*version));
        assert_eq!(settled, Some(expected.parse().unwrap()), "{limit}");
    }
}

#[test]
fn the_answer_names_the_connection_from_5_0_on_and_the_version_before() {
    for (version, expected) in [
        ("4.1", 0x0004_0001),
        ("5.0", 4),
        ("5.3", 4),
        ("6.0", 0x0006_0000),
    ] {
        let mut bus = Bus::new(MockGuest::new(1).memory().clone(), BusConfig::default());
        let contact = GuestMessage::InitiateContact(InitiateContact {
            version: version.parse().unwrap(),
            target_vp: VpIndex(0),
            target: ContactTarget::InterruptPage(2),
            monitor_pages: [0; 2],
        });
        bus.handle_message(1, contact.emit().as_slice());
        let answer = std::iter::from_fn(|| bus.poll_action()).last();
        let Some(Action::PostMessage {
            message: HostMessage::VersionResponse(answer),
            ..
        }) = answer
        else {
            panic!("{answer:?}");
        };
        assert_eq!(answer.connection_id, expected, "{version}");
    }
}

#[test]
fn messages_go_to_the_processor_that_the_contact_names() {
    let mut guest = MockGuest::new(3);
    guest.offer(echo(0));
    assert!(guest.connect_on(V5_3, VpIndex(2)));
    guest.request_offers();
    let log = guest.take_log();
    let targets = log.iter().filter_map(|action| match action {
        Action::PostMessage { vp, sint, .. } => Some((*vp, *sint)),
        _ => None,
    });
    let targets: Vec<_> = targets.collect();
    assert_eq!(targets, [(VpIndex(2), Sint::VMBUS); 3]);
}

#[test]
fn only_the_two_message_connections_take_messages() {
    let mut guest = MockGuest::new(1);
    for connection in [0, 2, 3, 5, 0x1_0001, 0x0080_0074, 0x00ff_ffff] {
        let status = guest.post_bytes(connection, GuestMessage::Unload.emit().as_slice());
        assert_eq!(status, HvStatus::INVALID_CONNECTION_ID, "{connection:#x}");
    }
}

#[test]
fn offers_come_in_one_order_and_with_one_number_in_every_session() {
    let mut guest = MockGuest::new(1);
    for n in 0..5 {
        guest.offer(echo(n));
    }
    assert!(guest.connect(V5_3));
    let first = guest.request_offers();
    let numbers: Vec<u32> = first.iter().map(|offer| offer.relid.0).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    for offer in &first {
        assert!(offer.dedicated_interrupt && offer.monitor_id.is_none());
        assert_eq!(offer.flags.bits() & 6, 0);
        assert_eq!(offer.connection_id, EVENT_CONNECTION_BASE + offer.relid.0);
    }
    assert!(guest.connect(V5_3));
    assert_eq!(guest.request_offers(), first);
}

#[test]
fn a_contact_in_any_state_starts_over() {
    // Each of these is a state to be in when the new kernel's contact comes.
    let states: [fn(&mut MockGuest, Relid); 6] = [
        |_, _| {},
        |guest, relid| {
            guest.create_gpadl(relid, &[1, 2, 3, 4]).unwrap();
        },
        |guest, relid| {
            guest.open(relid, 4).unwrap();
        },
        |guest, relid| {
            guest
                .with_host(|host, now| host.rescind(now, relid))
                .unwrap();
            guest.recv();
        },
        |guest, relid| {
            guest.open(relid, 4).unwrap();
            guest
                .with_host(|host, now| host.rescind(now, relid))
                .unwrap();
            guest.recv();
        },
        |guest, _| guest.set_deaf(true),
    ];
    for (index, enter) in states.into_iter().enumerate() {
        let (mut guest, relid) = with_echo();
        enter(&mut guest, relid);
        guest.take_log();
        guest.set_deaf(false);
        assert!(guest.connect(V5_3), "{index}");
        let log = guest.take_log();
        assert!(log.contains(&Action::SessionEnded));
        assert!(log.contains(&Action::DiscardMessages));
        let was_open = index == 2;
        assert_eq!(
            log.contains(&Action::ChannelClosed { relid }),
            was_open || index == 4
        );
        let gone = index == 3 || index == 4;
        assert_eq!(log.contains(&Action::ChannelReleased { relid }), gone);
        assert_eq!(guest.request_offers().len(), usize::from(!gone), "{index}");
        if !gone {
            let mut channel = guest.open(relid, 4).unwrap();
            assert_echoes(&mut guest, &mut channel);
        }
        assert_eq!(violations(&guest), 0);
    }
}

#[test]
fn messages_of_the_old_session_never_reach_the_new_one() {
    let mut guest = MockGuest::new(1);
    for n in 0..20 {
        guest.offer(echo(n));
    }
    assert!(guest.connect(V5_3));
    guest.set_deaf(true);
    guest.post(&GuestMessage::RequestOffers);
    // The old kernel dies here. Its page still holds the first offer.
    let contact = GuestMessage::InitiateContact(InitiateContact {
        version: V5_3,
        target_vp: VpIndex(0),
        target: ContactTarget::Sint {
            sint: 2,
            vtl: 0,
            feature_flags: 0,
        },
        monitor_pages: [0; 2],
    });
    guest.post(&contact);
    guest.set_deaf(false);
    assert!(matches!(guest.recv(), Some(HostMessage::OfferChannel(_))));
    assert!(matches!(
        guest.recv(),
        Some(HostMessage::VersionResponse(_))
    ));
    assert_eq!(guest.recv(), None);
}

#[test]
fn unload_closes_everything_and_is_answered() {
    let (mut guest, relid) = with_echo();
    guest.open(relid, 4).unwrap();
    guest.take_log();
    guest.post(&GuestMessage::Unload);
    assert_eq!(guest.recv(), Some(HostMessage::UnloadResponse));
    let log = guest.take_log();
    assert_eq!(log[0], Action::ChannelClosed { relid });
    assert!(log.contains(&Action::SessionEnded));
    assert!(guest.host().session().is_none());
    assert!(!guest.host().is_open(relid));
    assert!(guest.connect(V5_3));
    assert_eq!(guest.request_offers().len(), 1);
}

#[test]
fn unload_without_a_session_is_answered_on_the_boot_processor() {
    let mut guest = MockGuest::new(2);
    guest.post(&GuestMessage::Unload);
    assert_eq!(guest.recv(), Some(HostMessage::UnloadResponse));
    assert_eq!(violations(&guest), 0);
}

#[test]
fn unload_drops_what_waits_but_its_answer() {
    let mut guest = MockGuest::new(1);
    for n in 0..50 {
        guest.offer(echo(n));
    }
    assert!(guest.connect(V5_3));
    guest.set_deaf(true);
    guest.post(&GuestMessage::RequestOffers);
    guest.post(&GuestMessage::Unload);
    guest.set_deaf(false);
    assert!(
        matches!(guest.recv(), Some(HostMessage::OfferChannel(_))),
        "in the slot already"
    );
    assert_eq!(guest.recv(), Some(HostMessage::UnloadResponse));
    assert_eq!(guest.recv(), None);
}

#[test]
fn a_reset_says_nothing_and_keeps_the_offers() {
    let (mut guest, relid) = with_echo();
    guest.open(relid, 4).unwrap();
    guest.take_log();
    guest.with_host(Host::reset);
    assert_eq!(guest.recv(), None);
    assert!(guest.take_log().contains(&Action::ChannelClosed { relid }));
    assert!(guest.connect(V5_3));
    assert_eq!(guest.request_offers()[0].relid, relid);
}

#[test]
fn offers_can_be_requested_once_per_session() {
    let (mut guest, _) = with_echo();
    guest.post(&GuestMessage::RequestOffers);
    assert_eq!(guest.recv(), None);
    assert_eq!(violations(&guest), 1);
}

#[test]
fn two_hundred_reloads_leave_nothing_behind() {
    let (mut guest, relid) = with_echo();
    for _ in 0..200 {
        let mut channel = guest.open(relid, 4).unwrap();
        assert_echoes(&mut guest, &mut channel);
        guest.close(&channel);
        guest.post(&GuestMessage::Unload);
        assert_eq!(guest.recv(), Some(HostMessage::UnloadResponse));
        assert!(guest.connect(V5_3));
        assert_eq!(guest.request_offers().len(), 1);
    }
    assert_eq!(violations(&guest), 0);
    assert_eq!(guest.host().bus().gpadls.len(), 0);
}
