// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Channels from offer to release (protocol 4.5 to 4.10, 4.12).

use super::*;

fn closed(guest: &MockGuest, relid: Relid) -> bool {
    matches!(
        guest.host().channel_state(relid),
        Some(ChannelState::Offered)
    )
}

#[test]
fn a_channel_opens_echoes_closes_and_opens_again_with_its_numbers() {
    let (mut guest, relid) = with_echo();
    for _ in 0..3 {
        let mut channel = guest.open(relid, 4).unwrap();
        let info = guest.host().bus().channel(relid).unwrap();
        assert_eq!(info.event_connection_id, EVENT_CONNECTION_BASE + relid.0);
        assert_echoes(&mut guest, &mut channel);
        guest.close(&channel);
        assert!(closed(&guest, relid));
    }
    assert_eq!(violations(&guest), 0);
}

#[test]
fn the_host_is_told_to_bind_and_to_unbind() {
    let (mut guest, relid) = with_echo();
    guest.take_log();
    let channel = guest.open(relid, 4).unwrap();
    let opened = Action::ChannelOpened {
        relid,
        event_connection_id: EVENT_CONNECTION_BASE + relid.0,
    };
    assert!(guest.take_log().contains(&opened));
    guest.close(&channel);
    let log = guest.take_log();
    let torndown = log.iter().position(|action| {
        matches!(
            action,
            Action::PostMessage {
                message: HostMessage::GpadlTorndown { .. },
                ..
            }
        )
    });
    let closed = log
        .iter()
        .position(|action| *action == Action::ChannelClosed { relid });
    assert!(
        closed < torndown,
        "closed before the guest has its pages back"
    );
}

#[test]
fn rings_of_scattered_pages_serve_as_well() {
    let (mut guest, relid) = with_echo();
    let mut pfns = guest.alloc(12);
    pfns.reverse();
    pfns.swap(1, 9);
    let mut channel = guest.open_on(relid, &pfns, VpIndex(1)).unwrap();
    for _ in 0..1000 {
        assert_echoes(&mut guest, &mut channel);
    }
}

#[test]
fn an_offer_after_the_others_is_sent_at_once() {
    let (mut guest, _) = with_echo();
    let relid = guest.offer(echo(1));
    let Some(HostMessage::OfferChannel(offer)) = guest.recv() else {
        panic!("no offer");
    };
    assert_eq!(offer.relid, relid);
    let mut channel = guest.open(relid, 4).unwrap();
    assert_echoes(&mut guest, &mut channel);
}

#[test]
fn an_offer_before_the_request_waits_for_it() {
    let mut guest = MockGuest::new(1);
    assert!(guest.connect(V5_3));
    guest.offer(echo(0));
    assert_eq!(guest.recv(), None);
    assert_eq!(guest.request_offers().len(), 1);
}

#[test]
fn a_page_list_of_31_mib_is_taken_on_a_channel_that_is_not_open() {
    let (mut guest, relid) = with_echo();
    let pfns: Vec<u64> = (2000..2000 + 7936).collect();
    let gpadl = guest.create_gpadl(relid, &pfns).unwrap();
    assert_eq!(
        guest.host().bus().page_list(relid, gpadl).unwrap().pfns(),
        pfns
    );
    guest.teardown(relid, gpadl);
    assert!(guest.host().bus().page_list(relid, gpadl).is_none());
    assert_eq!(violations(&guest), 0);
}

#[test]
fn a_rescinded_channel_goes_when_the_guest_releases_it() {
    let (mut guest, relid) = with_echo();
    let channel = guest.open(relid, 4).unwrap();
    guest
        .with_host(|host, now| host.rescind(now, relid))
        .unwrap();
    assert_eq!(
        guest.recv(),
        Some(HostMessage::RescindChannelOffer { relid })
    );
    assert!(!guest.host().is_open(relid));
    let again = guest.with_host(|host, now| host.offer(now, echo(0)));
    assert!(
        matches!(again, Err(OfferError::InstanceInUse(_))),
        "not yet"
    );
    assert_eq!(
        guest.with_host(|host, now| host.rescind(now, relid)),
        Err(NoChannel(relid))
    );

    guest.post(&GuestMessage::CloseChannel { relid });
    assert_eq!(guest.host().bus().gpadls.len(), 1, "no teardown comes");
    guest.take_log();
    guest.post(&GuestMessage::RelidReleased { relid });
    assert_eq!(guest.take_log(), [Action::ChannelReleased { relid }]);
    assert_eq!(guest.host().bus().gpadls.len(), 0);
    assert!(guest.host().channel_state(relid).is_none());
    assert_eq!(violations(&guest), 0);
    drop(channel);

    let relid = guest.offer(echo(0));
    assert!(matches!(guest.recv(), Some(HostMessage::OfferChannel(_))));
    let mut channel = guest.open(relid, 4).unwrap();
    assert_echoes(&mut guest, &mut channel);
}

#[test]
fn a_number_is_not_used_again_before_its_release() {
    let (mut guest, relid) = with_echo();
    guest
        .with_host(|host, now| host.rescind(now, relid))
        .unwrap();
    assert_ne!(guest.offer(echo(1)), relid);
    guest.post(&GuestMessage::RelidReleased { relid });
    assert_eq!(guest.offer(echo(2)), relid);
}

#[test]
fn page_lists_of_a_rescinded_channel_are_answered_and_go_with_it() {
    let (mut guest, relid) = with_echo();
    guest
        .with_host(|host, now| host.rescind(now, relid))
        .unwrap();
    guest.recv();
    let gpadl = guest.create_gpadl(relid, &[2000, 2001]).unwrap();
    guest.teardown(relid, gpadl);
    guest.create_gpadl(relid, &[2000, 2001]).unwrap();
    assert!(guest.open(relid, 4).is_err(), "but it cannot be opened");
    guest.post(&GuestMessage::CloseChannel { relid });
    guest.post(&GuestMessage::RelidReleased { relid });
    assert_eq!(guest.host().bus().gpadls.len(), 0);
    assert_eq!(violations(&guest), 0, "messages crossed, that is all");
}

#[test]
fn a_guest_may_release_without_closing() {
    let (mut guest, relid) = with_echo();
    guest.open(relid, 4).unwrap();
    guest
        .with_host(|host, now| host.rescind(now, relid))
        .unwrap();
    guest.take_log();
    guest.post(&GuestMessage::RelidReleased { relid });
    let expected = [
        Action::ChannelClosed { relid },
        Action::ChannelReleased { relid },
    ];
    assert_eq!(guest.take_log(), expected);
}

#[test]
fn an_offer_that_the_guest_never_saw_is_rescinded_without_a_word() {
    let mut guest = MockGuest::new(1);
    let relid = guest.offer(echo(0));
    guest
        .with_host(|host, now| host.rescind(now, relid))
        .unwrap();
    assert!(
        guest
            .take_log()
            .contains(&Action::ChannelReleased { relid })
    );
    assert_eq!(guest.offer(echo(0)), relid);
}

#[test]
fn fifty_hot_adds_and_rescinds_leave_nothing_behind() {
    let (mut guest, _) = with_echo();
    for n in 1..50 {
        let relid = guest.offer(echo(n));
        guest.recv();
        let mut channel = guest.open(relid, 4).unwrap();
        assert_echoes(&mut guest, &mut channel);
        guest
            .with_host(|host, now| host.rescind(now, relid))
            .unwrap();
        guest.recv();
        guest.post(&GuestMessage::CloseChannel { relid });
        guest.post(&GuestMessage::RelidReleased { relid });
    }
    assert_eq!(guest.host().bus().channels().count(), 1);
    assert_eq!(guest.host().bus().gpadls.len(), 0);
    assert_eq!(violations(&guest), 0);
}

#[test]
fn events_go_to_the_processor_of_the_open_and_then_of_the_modify() {
    let (mut guest, relid) = with_echo();
    let pfns = guest.alloc(8);
    let mut channel = guest.open_on(relid, &pfns, VpIndex(1)).unwrap();
    assert_echoes(&mut guest, &mut channel);
    assert_eq!(guest.take_events(), [(VpIndex(1), relid)].into());
    let target_vp = VpIndex(0);
    guest.post(&GuestMessage::ModifyChannel(ModifyChannel {
        relid,
        target_vp,
    }));
    assert_eq!(
        guest.recv(),
        Some(HostMessage::ModifyChannelResponse { relid, status: 0 })
    );
    assert_eq!(
        guest.take_events(),
        [(VpIndex(0), relid)].into(),
        "what was missed"
    );
    assert_echoes(&mut guest, &mut channel);
    assert_eq!(guest.take_events(), [(VpIndex(0), relid)].into());
}

#[test]
fn a_modify_is_acknowledged_from_5_3_on_and_refused_before_4_1() {
    for (version, answered, moved) in [
        ("4.0", false, false),
        ("4.1", false, true),
        ("5.2", false, true),
        ("5.3", true, true),
    ] {
        let mut guest = MockGuest::new(2);
        let relid = guest.offer(echo(0));
        assert!(guest.connect(version.parse().unwrap()));
        guest.request_offers();
        guest.open(relid, 4).unwrap();
        let target_vp = VpIndex(1);
        guest.post(&GuestMessage::ModifyChannel(ModifyChannel {
            relid,
            target_vp,
        }));
        assert_eq!(guest.recv().is_some(), answered, "{version}");
        let state = guest.host().channel_state(relid).unwrap();
        let target = state.opened().unwrap().target_vp;
        assert_eq!(target == Some(VpIndex(1)), moved, "{version}");
    }
}

#[test]
fn a_channel_without_interrupts_gets_none() {
    let (mut guest, relid) = with_echo();
    let pfns = guest.alloc(8);
    let mut channel = guest.open_on(relid, &pfns, VpIndex(u32::MAX)).unwrap();
    assert_echoes(&mut guest, &mut channel);
    assert!(guest.take_events().is_empty());
}

#[test]
fn instances_are_unique_over_all_types() {
    let mut guest = MockGuest::new(1);
    guest.offer(echo(0));
    let twin = OfferSpec::message_pipe(Guid::from_u128(1), ECHO_INSTANCE);
    let mut bus = Bus::new(guest.memory().clone(), BusConfig::default());
    bus.offer(twin).unwrap();
    assert_eq!(
        bus.offer(twin),
        Err(OfferError::InstanceInUse(ECHO_INSTANCE))
    );
}

#[test]
fn there_are_2047_numbers() {
    let mut bus = Bus::new(MockGuest::new(1).memory().clone(), BusConfig::default());
    for n in 1..2048 {
        let spec = OfferSpec::message_pipe(Guid::ZERO, Guid::from_u128(n));
        assert_eq!(bus.offer(spec), Ok(Relid(u32::try_from(n).unwrap())));
    }
    let spec = OfferSpec::message_pipe(Guid::ZERO, Guid::from_u128(5000));
    assert_eq!(bus.offer(spec), Err(OfferError::NoRelid));
}

fn request(n: u128) -> TlConnectRequest {
    TlConnectRequest {
        endpoint: Guid::from_u128(n),
        service: Guid::from_u128(0x1388_facb_11e6_bd58_6400_6a79_86d3),
        silo: None,
    }
}

#[test]
fn a_connection_request_is_passed_on_once_and_answered_by_a_refusal_or_an_offer() {
    let (mut guest, _) = with_echo();
    guest.post(&GuestMessage::TlConnectRequest(request(1)));
    guest.post(&GuestMessage::TlConnectRequest(request(1)));
    assert_eq!(guest.take_connects(), [request(1)]);
    guest.with_host(|host, now| host.refuse_connect(now, &request(1)));
    guest.with_host(|host, now| host.refuse_connect(now, &request(1)));
    assert!(matches!(
        guest.recv(),
        Some(HostMessage::TlConnectResult(_))
    ));
    assert_eq!(guest.recv(), None, "refused once");

    let memory = guest.memory().clone();
    let mut bus = Bus::new(memory, BusConfig::default());
    let spec = OfferSpec {
        session_only: true,
        ..OfferSpec::message_pipe(request(1).service, request(1).endpoint)
    };
    assert_eq!(bus.offer(spec), Err(OfferError::NoSession));
}

#[test]
fn connection_requests_beyond_the_limit_are_refused_at_once() {
    let (mut guest, _) = with_echo();
    let many = MAX_PENDING_CONNECTS as u128;
    for n in 0..many + 10 {
        guest.post(&GuestMessage::TlConnectRequest(request(n)));
    }
    assert_eq!(guest.take_connects().len(), MAX_PENDING_CONNECTS);
    let refusals = std::iter::from_fn(|| guest.recv()).count();
    assert_eq!(refusals, 10);
    assert_eq!(violations(&guest), 10);
}

#[test]
fn flags_that_new_kernels_refuse_are_left_out_of_offers() {
    let mut bus = Bus::new(MockGuest::new(1).memory().clone(), BusConfig::default());
    bus.offer(OfferSpec {
        flags: ChannelFlags::from_bits_retain(0xffff),
        ..OfferSpec::message_pipe(Guid::ZERO, Guid::ZERO)
    })
    .unwrap();
    let contact = [14, 0, 0x0004_0001, 0, 0, 0, 0, 0, 0, 0];
    for message in [&contact[..], &[3, 0]] {
        let bytes: Vec<u8> = message
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect();
        bus.handle_message(1, &bytes);
    }
    let flags = std::iter::from_fn(|| bus.poll_action()).find_map(|action| match action {
        Action::PostMessage {
            message: HostMessage::OfferChannel(offer),
            ..
        } => Some(offer.flags),
        _ => None,
    });
    assert_eq!(flags.unwrap().bits(), 0xfff9);
}
