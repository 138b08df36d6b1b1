// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that mean harm, among them everything that other hosts fell over.

use super::*;
use crate::gpadl::MAX_UNFINISHED_GPADLS;
use crate::mock::gpadl_messages;
use crate::synic::HvStatus;
use proptest::prelude::*;

/// The guest still is as good as any.
fn assert_serves(guest: &mut MockGuest) {
    assert!(guest.connect(V5_3));
    let relid = guest.request_offers()[0].relid;
    let mut channel = guest.open(relid, 4).unwrap();
    assert_echoes(guest, &mut channel);
}

#[test]
fn a_guest_that_sends_host_messages_is_ignored() {
    let (mut guest, relid) = with_echo();
    let mut channel = guest.open(relid, 4).unwrap();
    for number in 0..64u32 {
        let kind = MessageType(number);
        if kind.direction() != Some(Direction::GuestToHost)
            || number >= 25
            || (18..=20).contains(&number)
        {
            let mut bytes = number.to_le_bytes().to_vec();
            bytes.resize(240, 1);
            let before = violations(&guest);
            assert_eq!(guest.post_bytes(4, &bytes), HvStatus::SUCCESS);
            assert_eq!(violations(&guest), before + 1, "{kind:?}");
            assert_eq!(guest.recv(), None, "{kind:?}");
        }
    }
    assert_echoes(&mut guest, &mut channel);
}

#[test]
fn every_message_cut_short_anywhere_is_ignored() {
    let (mut guest, relid) = with_echo();
    let gpadl = GpadlId(1);
    let mut messages = gpadl_messages(relid, gpadl, &[5]);
    messages.extend(gpadl_messages(relid, gpadl, &[5; 40]).pop());
    messages.extend([
        GuestMessage::RequestOffers,
        GuestMessage::CloseChannel { relid },
        GuestMessage::GpadlTeardown { relid, gpadl },
        GuestMessage::RelidReleased { relid },
        GuestMessage::Unload,
        GuestMessage::ModifyChannel(ModifyChannel {
            relid,
            target_vp: VpIndex(0),
        }),
        GuestMessage::InitiateContact(InitiateContact {
            version: V5_3,
            target_vp: VpIndex(0),
            target: ContactTarget::Sint {
                sint: 2,
                vtl: 0,
                feature_flags: 0,
            },
            monitor_pages: [0; 2],
        }),
        GuestMessage::OpenChannel(OpenChannel {
            relid,
            open_id: 1,
            gpadl,
            target_vp: VpIndex(0),
            downstream_offset: 1,
            user_data: [0; 120],
        }),
        GuestMessage::TlConnectRequest(TlConnectRequest {
            endpoint: Guid::ZERO,
            service: Guid::ZERO,
            silo: None,
        }),
    ]);
    for message in messages {
        let bytes = message.emit();
        let least = message.message_type().min_size().unwrap();
        for cut in 0..least {
            let before = violations(&guest);
            guest.post_bytes(4, &bytes.as_slice()[..cut]);
            assert_eq!(violations(&guest), before + 1, "{message:?} at {cut}");
        }
    }
    assert_eq!(guest.recv(), None);
    assert!(guest.host().session().is_some());
    assert_serves(&mut guest);
}

#[test]
fn a_contact_for_a_sint_trust_level_or_processor_that_is_not_served_is_refused() {
    for (sint, vtl, vp) in [
        (16, 0, 0),
        (255, 0, 0),
        (3, 0, 0),
        (2, 1, 0),
        (2, 0, 2),
        (2, 0, u32::MAX),
    ] {
        let (mut guest, _) = with_echo();
        guest.post(&GuestMessage::InitiateContact(InitiateContact {
            version: V5_3,
            target_vp: VpIndex(vp),
            target: ContactTarget::Sint {
                sint,
                vtl,
                feature_flags: 0,
            },
            monitor_pages: [0; 2],
        }));
        let Some(HostMessage::VersionResponse(answer)) = guest.recv() else {
            panic!("no answer");
        };
        assert!(!answer.supported, "{sint} {vtl} {vp}");
        assert!(guest.host().session().is_none());
        assert_eq!(violations(&guest), 1);
        assert_serves(&mut guest);
    }
}

#[test]
fn messages_before_a_contact_are_ignored() {
    let mut guest = MockGuest::new(1);
    let relid = guest.offer(echo(0));
    for message in [
        GuestMessage::RequestOffers,
        GuestMessage::CloseChannel { relid },
        GuestMessage::RelidReleased { relid },
        gpadl_messages(relid, GpadlId(1), &[5])[0],
    ] {
        guest.post(&message);
        assert_eq!(guest.recv(), None);
    }
    assert_eq!(violations(&guest), 4);
    assert_serves(&mut guest);
}

#[test]
fn things_that_do_not_exist_are_answered_where_the_guest_waits() {
    let (mut guest, relid) = with_echo();
    for none in [
        Relid(0),
        Relid(7),
        Relid(2047),
        Relid(2048),
        Relid(u32::MAX),
    ] {
        assert!(guest.create_gpadl(none, &[5]).is_err());
        guest.teardown(none, GpadlId(77));
        let target_vp = VpIndex(0);
        guest.post(&GuestMessage::ModifyChannel(ModifyChannel {
            relid: none,
            target_vp,
        }));
        assert!(matches!(
            guest.recv(),
            Some(HostMessage::ModifyChannelResponse { status: 1.., .. })
        ));
        let before = violations(&guest);
        guest.post(&GuestMessage::CloseChannel { relid: none });
        guest.post(&GuestMessage::RelidReleased { relid: none });
        assert_eq!(violations(&guest), before + 2);
        assert_eq!(guest.recv(), None);
    }
    for connection in [
        EVENT_CONNECTION_BASE,
        EVENT_CONNECTION_BASE + 7,
        2,
        0x00ff_ffff,
    ] {
        let status = guest.hypercall(0x1_005d, connection.into());
        assert_eq!(status, HvStatus::INVALID_CONNECTION_ID);
    }
    let flagged = u64::from(EVENT_CONNECTION_BASE + relid.0) | 1 << 32;
    assert_eq!(
        guest.hypercall(0x1_005d, flagged),
        HvStatus::INVALID_PORT_ID
    );
    assert_serves(&mut guest);
}

#[test]
fn opens_that_make_no_sense_fail() {
    let (mut guest, relid) = with_echo();
    let other = guest.offer(echo(1));
    guest.recv();
    let pfns = guest.alloc(8);
    let gpadl = guest.create_gpadl(relid, &pfns).unwrap();
    let foreign = guest.create_gpadl(other, &pfns).unwrap();
    guest.post(&gpadl_messages(relid, GpadlId(5), &[5; 40])[0]);
    let good = OpenChannel {
        relid,
        open_id: 3,
        gpadl,
        target_vp: VpIndex(0),
        downstream_offset: 4,
        user_data: [0; 120],
    };
    let bad = [
        OpenChannel {
            relid: Relid(9),
            ..good
        },
        OpenChannel {
            gpadl: GpadlId(1),
            ..good
        },
        OpenChannel {
            gpadl: foreign,
            ..good
        },
        OpenChannel {
            gpadl: GpadlId(5),
            ..good
        },
        OpenChannel {
            target_vp: VpIndex(2),
            ..good
        },
        OpenChannel {
            downstream_offset: 0,
            ..good
        },
        OpenChannel {
            downstream_offset: 1,
            ..good
        },
        OpenChannel {
            downstream_offset: 7,
            ..good
        },
        OpenChannel {
            downstream_offset: 8,
            ..good
        },
        OpenChannel {
            downstream_offset: u32::MAX,
            ..good
        },
    ];
    let result = |guest: &mut MockGuest, open: OpenChannel| {
        guest.post(&GuestMessage::OpenChannel(open));
        match guest.recv() {
            Some(HostMessage::OpenChannelResult {
                relid,
                open_id: 3,
                status,
            }) => {
                assert_eq!(relid, open.relid);
                status
            }
            other => panic!("{other:?}"),
        }
    };
    for (index, open) in bad.into_iter().enumerate() {
        assert_ne!(result(&mut guest, open), 0, "{open:?}");
        assert_eq!(violations(&guest), index as u64 + 1);
    }
    assert_eq!(result(&mut guest, good), 0);
    assert_ne!(result(&mut guest, good), 0, "it is open already");
    guest.post(&GuestMessage::CloseChannel { relid: other });
    guest.post(&GuestMessage::RelidReleased { relid });
    assert_eq!(violations(&guest), 13);
}

#[test]
fn rings_with_wild_indices_are_not_opened() {
    let (mut guest, relid) = with_echo();
    let pfns = guest.alloc(8);
    let gpadl = guest.create_gpadl(relid, &pfns).unwrap();
    let ring = crate::mock::GuestRing::init(guest.memory(), &pfns[..4]);
    ring.set_indices(0x8000_0000, 0);
    guest.post(&GuestMessage::OpenChannel(OpenChannel {
        relid,
        open_id: 3,
        gpadl,
        target_vp: VpIndex(0),
        downstream_offset: 4,
        user_data: [0; 120],
    }));
    assert!(matches!(
        guest.recv(),
        Some(HostMessage::OpenChannelResult { status: 1.., .. })
    ));
}

#[test]
fn tearing_down_the_rings_of_an_open_channel_closes_it_first() {
    let (mut guest, relid) = with_echo();
    let channel = guest.open(relid, 4).unwrap();
    guest.take_log();
    guest.teardown(relid, channel.gpadl);
    assert_eq!(guest.take_log()[0], Action::ChannelClosed { relid });
    assert!(!guest.host().is_open(relid));
    assert_eq!(violations(&guest), 1);
}

#[test]
fn a_list_of_another_channel_is_not_given_back() {
    let (mut guest, relid) = with_echo();
    let other = guest.offer(echo(1));
    guest.recv();
    let gpadl = guest.create_gpadl(relid, &[5, 6]).unwrap();
    guest.post(&GuestMessage::GpadlTeardown {
        relid: other,
        gpadl,
    });
    assert_eq!(guest.recv(), None);
    assert!(guest.host().bus().page_list(relid, gpadl).is_some());
}

#[test]
fn of_100_000_unfinished_lists_few_are_kept_and_the_rest_refused() {
    let (mut guest, relid) = with_echo();
    let mut refused = 0;
    for id in 0..100_000 {
        let header = gpadl_messages(relid, GpadlId(id), &[5; 27])[0];
        assert_eq!(guest.post(&header), HvStatus::SUCCESS);
        refused += usize::from(guest.recv().is_some());
        if id % 1000 == 0 {
            guest.take_log();
        }
    }
    assert_eq!(refused, 100_000 - MAX_UNFINISHED_GPADLS);
    assert_eq!(guest.host().bus().gpadls.len(), MAX_UNFINISHED_GPADLS);
    assert_serves(&mut guest);
}

#[test]
fn a_list_of_absurd_size_is_refused() {
    let (mut guest, relid) = with_echo();
    let mut bytes = gpadl_messages(relid, GpadlId(5), &[5; 26])[0]
        .emit()
        .as_slice()
        .to_vec();
    bytes[16..20].copy_from_slice(&[0xff; 4]);
    guest.post_bytes(4, &bytes);
    assert!(matches!(
        guest.recv(),
        Some(HostMessage::GpadlCreated { status: 1.., .. })
    ));
    assert!(guest.host().bus().gpadls.is_empty());
}

#[test]
fn a_guest_that_does_not_read_its_messages_is_slowed_down_and_forgiven() {
    let (mut guest, _) = with_echo();
    guest.set_deaf(true);
    let mut posts = 0u32;
    let status = loop {
        // Each is answered with a refusal.
        let header = gpadl_messages(Relid(9), GpadlId(posts), &[5])[0];
        let status = guest.post(&header);
        if status != HvStatus::SUCCESS {
            break status;
        }
        posts += 1;
        assert!(posts < 100_000, "no end");
    };
    assert_eq!(status, HvStatus::INSUFFICIENT_BUFFERS);
    assert!(posts >= 4096);
    guest.set_deaf(false);
    let answers = std::iter::from_fn(|| guest.recv()).count();
    assert_eq!(answers, posts as usize, "nothing was lost");
    assert_serves(&mut guest);
}

#[test]
fn a_deaf_guest_can_still_start_over() {
    let (mut guest, _) = with_echo();
    guest.set_deaf(true);
    for id in 0..10_000 {
        guest.post(&gpadl_messages(Relid(9), GpadlId(id), &[5])[0]);
    }
    let contact = InitiateContact {
        version: V5_3,
        target_vp: VpIndex(1),
        target: ContactTarget::Sint {
            sint: 2,
            vtl: 0,
            feature_flags: 0,
        },
        monitor_pages: [0; 2],
    };
    for _ in 0..1000 {
        assert_eq!(
            guest.post(&GuestMessage::InitiateContact(contact)),
            HvStatus::SUCCESS
        );
        assert_eq!(guest.post(&GuestMessage::RequestOffers), HvStatus::SUCCESS);
    }
    guest.set_deaf(false);
    while guest.recv().is_some() {}
    assert_serves(&mut guest);
}

#[derive(Clone, Debug)]
enum Step {
    Message(u32, Vec<u8>),
    Known(u8, u32, u32),
    Signal(u64),
    Rescind(u32),
    Offer(u8),
    Advance,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..240);
    prop_oneof![
        1 => (1u32..30, bytes).prop_map(|(kind, bytes)| Step::Message(kind, bytes)),
        6 => (0u8..12, 0u32..6, 0u32..4).prop_map(|(kind, relid, id)| Step::Known(kind, relid, id)),
        1 => any::<u64>().prop_map(Step::Signal),
        1 => (0u32..6).prop_map(Step::Rescind),
        1 => (0u8..6).prop_map(Step::Offer),
        1 => Just(Step::Advance),
    ]
}

fn perform(guest: &mut MockGuest, step: Step) {
    match step {
        Step::Message(kind, mut bytes) => {
            bytes.splice(0..bytes.len().min(4), kind.to_le_bytes());
            bytes.truncate(240);
            guest.post_bytes(4, &bytes);
        }
        Step::Known(kind, relid, id) => {
            let (relid, gpadl) = (Relid(relid), GpadlId(id));
            let page = 2000 + u64::from(id) * 64;
            let pfns: Vec<u64> = (page..page + 8).collect();
            let message = match kind {
                0..=2 => gpadl_messages(relid, gpadl, &pfns)[0],
                3 => gpadl_messages(relid, gpadl, &[page; 40])[usize::from(id > 1)],
                4..=6 => GuestMessage::OpenChannel(OpenChannel {
                    relid,
                    open_id: id,
                    gpadl,
                    target_vp: VpIndex(id),
                    downstream_offset: 4,
                    user_data: [0; 120],
                }),
                7 => GuestMessage::CloseChannel { relid },
                8 => GuestMessage::GpadlTeardown { relid, gpadl },
                9 => GuestMessage::RelidReleased { relid },
                10 => GuestMessage::ModifyChannel(ModifyChannel {
                    relid,
                    target_vp: VpIndex(id),
                }),
                _ if id == 0 => GuestMessage::Unload,
                _ => {
                    guest.connect(V5_3);
                    GuestMessage::RequestOffers
                }
            };
            guest.post(&message);
        }
        Step::Signal(input) => {
            guest.hypercall(0x1_005d, u64::from(EVENT_CONNECTION_BASE) + input % 8);
        }
        Step::Rescind(relid) => {
            let _ = guest.with_host(|host, now| host.rescind(now, Relid(relid)));
        }
        Step::Offer(n) => {
            let _ = guest.with_host(|host, now| host.offer(now, echo(n.into())));
        }
        Step::Advance => guest.advance(std::time::Duration::from_secs(1)),
    }
    while guest.recv().is_some() {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_leaves_a_bus_that_serves(steps in proptest::collection::vec(step(), 1..150)) {
        let (mut guest, _) = with_echo();
        for step in steps {
            perform(&mut guest, step);
            let bus = guest.host().bus();
            // A device is open only where the bus says so.
            for channel in bus.channels() {
                let open = channel.state.opened().is_some();
                prop_assert!(open || !guest.host().is_open(channel.relid));
            }
            prop_assert!(guest.host().next_deadline().is_none());
        }
        guest.post(&GuestMessage::Unload);
        prop_assert!(guest.host().bus().gpadls.is_empty());
        while guest.recv().is_some() {}
        let _ = guest.with_host(|host, now| host.offer(now, echo(77)));
        assert_serves(&mut guest);
    }
}
