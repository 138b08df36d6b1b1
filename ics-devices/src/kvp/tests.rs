// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data exchange with a guest that the test plays: packet by packet, or with a
//! daemon that keeps pools as Linux's does.

mod host_items;
mod listing;

use proptest::prelude::*;

use super::wire::put_text;
use super::*;
use crate::script::{Script, answer, listed, millis, secs};

type Exchange = Script<KvpProtocol>;

const LIMIT: Duration = secs(60);

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn value(text: &str) -> Value {
    Value::text(text).unwrap()
}

fn set(name: &str, text: &str) -> KvpRequest {
    KvpRequest::Set(Pool::External, key(name), value(text))
}

/// What Linux's daemon and driver do.
#[derive(Default)]
struct Daemon {
    pools: [Vec<(String, String)>; 4],
    /// Indices of the guest's pool that cannot be read.
    unreadable: Vec<usize>,
}

fn text(field: &[u8]) -> String {
    wire::get_text(field).unwrap()
}

fn cut(text: &str, units: usize) -> String {
    let mut used = 0;
    let fits = |character: &char| {
        used += character.len_utf16();
        used <= units
    };
    text.chars().take_while(fits).collect()
}

impl Daemon {
    fn reply(&mut self, mut request: Vec<u8>) -> Vec<u8> {
        let body = request[28..].to_vec();
        let pool = &mut self.pools[usize::from(body[1])];
        let mut status = 0;
        match body[0] {
            1 => {
                let name = text(&body[16..528]);
                let number = u64::from_le_bytes(body[528..536].try_into().unwrap());
                let value = match body[4] {
                    1 => text(&body[528..]),
                    _ => number.to_string(),
                };
                match pool.iter_mut().find(|item| item.0 == name) {
                    Some(item) => item.1 = value,
                    None => pool.push((name, value)),
                }
            }
            2 => {
                let name = text(&body[8..520]);
                let before = pool.len();
                pool.retain(|item| item.0 != name);
                if pool.len() == before {
                    status = HResult::CONT.0;
                }
            }
            3 => {
                let index = u32::from_le_bytes(body[4..8].try_into().unwrap());
                let index = usize::try_from(index).unwrap();
                match pool.get(index) {
                    Some(_) if self.unreadable.contains(&index) => status = HResult::FAIL.0,
                    Some((name, value)) => {
                        let mut fields = vec![1, 0, 0, 0];
                        let (mut a, mut b) = (Vec::new(), Vec::new());
                        let key_size = put_text(&mut a, &cut(name, MAX_KEY_BACK), 512);
                        let value_size = put_text(&mut b, &cut(value, MAX_VALUE_BACK), 2048);
                        fields.extend(key_size.to_le_bytes());
                        fields.extend(value_size.to_le_bytes());
                        fields.extend(a);
                        fields.extend(b);
                        request[36..36 + fields.len()].copy_from_slice(&fields);
                    }
                    None => status = HResult::CONT.0,
                }
            }
            _ => status = HResult::GUID_NOT_FOUND.0,
        }
        answer(request, status)
    }
}

impl Exchange {
    fn exchange(items: &[(&str, &str)]) -> Self {
        let items = items.iter().map(|(name, text)| (key(name), value(text)));
        Self::ready(Kvp::new(items), (4, 0))
    }

    fn ask(&mut self, request: KvpRequest) -> Result<Ticket, ServiceError> {
        let asked = self.device.request(self.now, request, LIMIT);
        self.poke();
        asked
    }

    fn serve(&mut self, daemon: &mut Daemon) {
        while let Some(sent) = self.try_take() {
            let reply = daemon.reply(sent.payload);
            self.send(&reply);
        }
    }

    fn outcome(&mut self) -> Option<Result<KvpAnswer, ServiceError>> {
        self.device.take_outcome().map(|outcome| outcome.result)
    }

    fn does(
        &mut self,
        daemon: &mut Daemon,
        request: KvpRequest,
    ) -> Result<KvpAnswer, ServiceError> {
        self.ask(request)?;
        self.serve(daemon);
        self.outcome().expect("an outcome")
    }

    fn list(&mut self, daemon: &mut Daemon, pool: Pool) -> Listing {
        match self.does(daemon, KvpRequest::List(pool, 0)) {
            Ok(KvpAnswer::Items(listing)) => listing,
            other => panic!("{other:?}"),
        }
    }
}

fn items(listing: &Listing) -> Vec<(&str, &str)> {
    let pairs = listing.items.iter();
    pairs
        .map(|item| (item.key.as_str(), item.value.as_str()))
        .collect()
}

#[test]
fn versions_with_all_operations_are_offered() {
    let mut script = Script::new(Kvp::new([]));
    script.open();
    assert_eq!(
        listed(&script.take()).1,
        [IcVersion::new(3, 0), IcVersion::new(4, 0)]
    );
}

#[test]
fn a_guest_without_a_daemon_is_waited_for_and_then_gets_the_items() {
    let mut script = Script::new(Kvp::new([(key("a"), value("1"))]));
    script.open();
    let asked = script.ask(KvpRequest::List(Pool::Auto, 0));
    assert_eq!(asked, Err(ServiceError::NoDaemon));
    script.advance(secs(3600));
    assert_eq!(script.state(), ServiceState::NoDaemon);
    assert_eq!(script.unread(), 1, "one negotiation and nothing else");
    script.negotiate((4, 0));
    let mut daemon = Daemon::default();
    script.serve(&mut daemon);
    assert_eq!(daemon.pools[0], [("a".into(), "1".into())]);
    assert_eq!(script.detail(), "1 items of the host's, all in the guest");
}

#[test]
fn items_are_set_changed_listed_found_and_deleted() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    for (name, text) in [("a", "1"), ("\u{e4}\u{1f980}", "zwei"), ("a", "drei")] {
        assert_eq!(
            script.does(&mut daemon, set(name, text)),
            Ok(KvpAnswer::Done)
        );
    }
    let listing = script.list(&mut daemon, Pool::External);
    assert_eq!(
        items(&listing),
        [("a", "drei"), ("\u{e4}\u{1f980}", "zwei")]
    );
    let get = |name: &str| KvpRequest::Get(Pool::External, key(name));
    let found = script.does(&mut daemon, get("\u{e4}\u{1f980}"));
    let Ok(KvpAnswer::Item(Some(item))) = found else {
        panic!("{found:?}");
    };
    assert_eq!(item.value, "zwei");
    assert_eq!(
        script.does(&mut daemon, get("b")),
        Ok(KvpAnswer::Item(None))
    );
    let delete = |name: &str| KvpRequest::Delete(Pool::External, key(name));
    assert_eq!(script.does(&mut daemon, delete("a")), Ok(KvpAnswer::Done));
    assert_eq!(
        script.does(&mut daemon, delete("a")),
        Err(ServiceError::Guest(HResult::CONT))
    );
    assert_eq!(items(&script.list(&mut daemon, Pool::External)).len(), 1);
    assert_eq!(script.device.items().len(), 1);
}

#[test]
fn the_longest_items_are_whole_although_linux_cuts_them() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    let (name, text) = ("k".repeat(255), "v".repeat(1023));
    let pair = "p".repeat(1021) + "\u{1f980}";
    script.does(&mut daemon, set(&name, &text)).unwrap();
    script.does(&mut daemon, set("pair", &pair)).unwrap();
    let listing = script.list(&mut daemon, Pool::External);
    assert_eq!(
        items(&listing),
        [(name.as_str(), text.as_str()), ("pair", pair.as_str())]
    );
    let found = script.does(&mut daemon, KvpRequest::Get(Pool::External, key(&name)));
    assert!(matches!(found, Ok(KvpAnswer::Item(Some(item))) if item.value == text));
    // Another program's items are told as the guest tells them.
    daemon.pools[1].push((name.clone(), text));
    let listing = script.list(&mut daemon, Pool::Guest);
    assert_eq!(listing.items[0].key.len(), 254);
}

#[test]
fn what_no_guest_takes_is_refused_at_once() {
    let mut script = Exchange::exchange(&[]);
    for request in [
        KvpRequest::Set(Pool::Auto, key("OSName"), value("x")),
        KvpRequest::Delete(Pool::Auto, key("OSName")),
    ] {
        let error = script.ask(request).unwrap_err();
        assert_eq!(error.code(), "unsupported");
    }
    assert_eq!(script.unread(), 0);
}

#[test]
fn one_request_at_a_time() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    script.ask(set("a", "1")).unwrap();
    assert_eq!(script.ask(set("b", "2")), Err(ServiceError::Busy));
    script.serve(&mut daemon);
    assert_eq!(script.outcome(), Some(Ok(KvpAnswer::Done)));
}

#[test]
fn a_request_goes_before_the_items_that_are_still_to_be_sent() {
    let mut script = Exchange::exchange(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let mut daemon = Daemon::default();
    // "a" is in the ring already.
    script.ask(KvpRequest::List(Pool::Guest, 0)).unwrap();
    let reply = daemon.reply(script.take());
    script.send(&reply);
    let request = script.take();
    assert_eq!(request[28], 3, "an enumeration");
    let reply = daemon.reply(request);
    script.send(&reply);
    assert!(script.outcome().unwrap().is_ok());
    assert_eq!(
        script.device.unsent_items(),
        1,
        "b is in the ring, c is not"
    );
    script.serve(&mut daemon);
    assert_eq!(daemon.pools[0].len(), 3);
}

#[test]
fn an_unreadable_item_is_asked_for_twice_counted_and_left_out() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    daemon.pools[1] = ["a", "b", "c"].map(|n| (n.into(), n.into())).to_vec();
    daemon.unreadable = vec![1];
    let listing = script.list(&mut daemon, Pool::Guest);
    assert_eq!(items(&listing), [("a", "a"), ("c", "c")]);
    assert_eq!((listing.unreadable, listing.cut), (1, false));
    assert_eq!(script.device.counts().sent, 1 + 3 + 1 + 1);
    daemon.pools[1] = vec![("x".into(), String::new()); 40];
    daemon.unreadable = (0..40).collect();
    let failed = script.does(&mut daemon, KvpRequest::List(Pool::Guest, 0));
    assert_eq!(failed, Err(ServiceError::Guest(HResult::FAIL)));
}

#[test]
fn nonsense_ends_the_request_and_not_the_service() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    script.ask(KvpRequest::List(Pool::Guest, 0)).unwrap();
    let request = script.take();
    script.send(&answer(request, 0));
    assert_eq!(script.outcome(), Some(Err(ServiceError::BadAnswer)));
    assert_eq!(script.device.counts().ignored, 1);
    assert_eq!(script.does(&mut daemon, set("a", "1")), Ok(KvpAnswer::Done));
}

#[test]
fn a_daemon_that_dies_is_told_at_once_and_its_successor_gets_everything() {
    let (mut script, mut daemon) = (Exchange::exchange(&[("a", "1")]), Daemon::default());
    script.serve(&mut daemon);
    script.ask(set("b", "2")).unwrap();
    script.advance(millis(1_500));
    assert_eq!(script.outcome(), Some(Err(ServiceError::NoDaemon)));
    assert_eq!(script.ask(set("c", "3")), Err(ServiceError::NoDaemon));
    assert_eq!(script.state(), ServiceState::NoDaemon);
    // The new daemon has lost its files and finds the request for "b", which
    // nobody wants any more.
    daemon = Daemon::default();
    script.advance(secs(30));
    script.serve(&mut daemon);
    script.advance(secs(30));
    script.serve(&mut daemon);
    assert_eq!(daemon.pools[0], [("a".into(), "1".into())]);
    assert_eq!(script.state(), ServiceState::Ready);
    assert_eq!(script.does(&mut daemon, set("b", "4")), Ok(KvpAnswer::Done));
}

#[test]
fn a_daemon_that_is_killed_in_a_transfer_costs_that_request_only() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    for round in 0..50 {
        let text = round.to_string();
        script.ask(set("k", &text)).unwrap();
        let request = script.take();
        script.send(&answer(request, HResult::FAIL.0));
        assert_eq!(
            script.outcome(),
            Some(Err(ServiceError::Guest(HResult::FAIL)))
        );
        assert_eq!(
            script.does(&mut daemon, set("k", &text)),
            Ok(KvpAnswer::Done)
        );
        assert_eq!(daemon.pools[0][0].1, text);
    }
}

#[test]
fn an_item_that_the_guest_does_not_take_is_tried_again_later() {
    let mut script = Exchange::exchange(&[("a", "1"), ("b", "2")]);
    let request = script.take();
    script.send(&answer(request, HResult::FAIL.0));
    let mut daemon = Daemon::default();
    script.serve(&mut daemon);
    assert_eq!(daemon.pools[0], [("b".into(), "2".into())]);
    assert_eq!(script.device.unsent_items(), 1);
    script.advance(secs(5));
    script.serve(&mut daemon);
    assert_eq!(daemon.pools[0].len(), 2);
    assert_eq!(script.device.unsent_items(), 0);
}

#[test]
fn items_that_vanish_are_noticed_and_sent_again() {
    let (mut script, mut daemon) = (
        Exchange::exchange(&[("a", "1"), ("b", "2")]),
        Daemon::default(),
    );
    script.serve(&mut daemon);
    daemon.pools[0].remove(0);
    script.advance(secs(5));
    script.serve(&mut daemon);
    assert_eq!(daemon.pools[0].len(), 2);
    // With nothing amiss a look is one packet.
    let sent = script.device.counts().sent;
    script.advance(secs(5));
    script.serve(&mut daemon);
    assert_eq!(script.device.counts().sent, sent + 1);
}

#[test]
fn a_stopped_daemon_shows_without_anybody_asking() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    script.advance(secs(7));
    assert_eq!(script.state(), ServiceState::NoDaemon);
    script.serve(&mut daemon);
    assert_eq!(script.state(), ServiceState::Ready);
}

#[test]
fn while_nobody_watches_there_are_no_looks_and_then_one_at_once() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    script.device.watch(false);
    script.poke();
    script.advance(secs(3600));
    assert_eq!(script.unread(), 0);
    // The daemon has stopped meanwhile.
    assert_eq!(script.state(), ServiceState::Ready);
    script.device.watch(true);
    script.poke();
    assert_eq!(script.unread(), 1);
    assert!(script.device.is_looking());
    script.advance(secs(2));
    assert!(!script.device.is_looking());
    assert_eq!(script.state(), ServiceState::NoDaemon);
    script.serve(&mut daemon);
    assert_eq!(script.state(), ServiceState::Ready);
    // Somebody who watches again soon asks for no more.
    for watched in [false, true, false, true] {
        script.device.watch(watched);
        script.poke();
        assert_eq!(script.unread(), 0);
    }
    script.advance(secs(5));
    assert!(script.device.is_looking());
    script.serve(&mut daemon);
    assert!(!script.device.is_looking());
    // What passes anyway tells as much as a look.
    script.device.watch(false);
    script.advance(secs(60));
    let list = KvpRequest::List(Pool::Guest, 0);
    script.does(&mut daemon, list).unwrap();
    script.device.watch(true);
    script.poke();
    assert_eq!(script.unread(), 0);
}

#[test]
fn items_that_vanish_while_nobody_watches_are_sent_again_too() {
    let (mut script, mut daemon) = (Exchange::exchange(&[("a", "1")]), Daemon::default());
    script.serve(&mut daemon);
    script.device.watch(false);
    script.poke();
    daemon.pools[0].clear();
    script.advance(secs(59));
    assert_eq!(script.unread(), 0);
    script.advance(secs(2));
    script.serve(&mut daemon);
    assert_eq!(daemon.pools[0].len(), 1);
    // With the last item there is nothing more to lose.
    script
        .does(&mut daemon, KvpRequest::Delete(Pool::External, key("a")))
        .unwrap();
    script.advance(secs(3600));
    assert_eq!(script.unread(), 0);
}

#[test]
fn a_request_whose_end_is_unknown_is_put_right() {
    let (mut script, mut daemon) = (Exchange::exchange(&[("a", "1")]), Daemon::default());
    script.serve(&mut daemon);
    // Taken by the guest, and answered too late.
    for request in [
        set("a", "2"),
        set("b", "3"),
        KvpRequest::Delete(Pool::External, key("a")),
    ] {
        script.ask(request).unwrap();
        let request = script.take();
        script.advance(LIMIT);
        assert_eq!(script.outcome(), Some(Err(ServiceError::Timeout)));
        let reply = daemon.reply(request);
        script.send(&reply);
        script.serve(&mut daemon);
        script.advance(secs(5));
        script.serve(&mut daemon);
        assert_eq!(daemon.pools[0], [("a".into(), "1".into())]);
    }
}

#[test]
fn a_guest_that_starts_anew_gets_the_items_again() {
    let (mut script, mut daemon) = (Exchange::exchange(&[("a", "1")]), Daemon::default());
    script.serve(&mut daemon);
    script.does(&mut daemon, set("b", "2")).unwrap();
    script.ask(set("c", "3")).unwrap();
    script.close();
    assert_eq!(script.outcome(), Some(Err(ServiceError::NotOpen)));
    script.open();
    script.negotiate((4, 0));
    let mut daemon = Daemon::default();
    script.serve(&mut daemon);
    let expected = [("a", "1"), ("b", "2")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(daemon.pools[0], expected);
}

#[test]
fn addresses_are_read_and_a_guest_that_cannot_set_them_is_quoted() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    let adapter = Adapter::new("52:54:00:00:00:01").unwrap();
    script.ask(KvpRequest::GetIp(adapter.clone())).unwrap();
    let mut reply = answer(script.take(), 0);
    assert_eq!(reply.len(), 7456);
    let mut field = Vec::new();
    put_text(&mut field, "10.0.0.2;", 64);
    reply[288..352].copy_from_slice(&field);
    script.send(&reply);
    let Some(Ok(KvpAnswer::Ip(info))) = script.outcome() else {
        panic!("no addresses");
    };
    assert_eq!(info.addresses[0].address, "10.0.0.2");
    let config = IpConfig::new(vec![], vec![], vec![], true).unwrap();
    let set = KvpRequest::SetIp(adapter, config);
    let error = script.does(&mut daemon, set).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest answered 0x80041002 (no adapter with this GUID)"
    );
}

#[test]
fn nothing_happens_while_the_vm_is_paused() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    script.advance(secs(4));
    script.pause();
    script.advance(secs(3600));
    assert_eq!(script.unread(), 0);
    script.resume();
    script.advance(millis(900));
    assert_eq!(script.unread(), 0);
    script.advance(millis(100));
    assert_eq!(script.unread(), 1, "a look");
    script.serve(&mut daemon);
}

#[test]
fn an_item_whose_user_is_gone_before_the_guest_has_it_is_taken_back() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    let ticket = script.ask(set("k", "v")).unwrap();
    let late = daemon.reply(script.take());
    script.device.cancel(script.now, ticket);
    script.poke();
    script.send(&late);
    script.serve(&mut daemon);
    script.advance(secs(6));
    script.serve(&mut daemon);
    assert!(daemon.pools[0].is_empty() && script.device.items().is_empty());
}

#[test]
fn a_listing_that_is_cancelled_between_two_packets_leaves_nothing_behind() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    script.does(&mut daemon, set("a", "1")).unwrap();
    let ticket = script.ask(KvpRequest::List(Pool::External, 0)).unwrap();
    script.ring.refuses = Some(vmbus::host::SendError::Full);
    let first = daemon.reply(script.take());
    script.send(&first);
    script.device.cancel(script.now, ticket);
    script.ring.refuses = None;
    script.poke();
    assert_eq!(script.unread(), 0);
    let listed = script.does(&mut daemon, KvpRequest::List(Pool::External, 0));
    let Ok(KvpAnswer::Items(listing)) = listed else {
        panic!("{listed:?}");
    };
    assert_eq!(listing.items.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever is set and deleted, and whatever the guest refuses or is late
    /// with, in the end it has what the host has.
    #[test]
    fn in_the_end_the_guest_has_the_hosts_items(
        steps in prop::collection::vec((0..5_u8, 0..6_u8, any::<bool>()), 0..60),
    ) {
        let (mut script, mut daemon) = (Exchange::exchange(&[("k0", "x")]), Daemon::default());
        for (step, name, first) in steps {
            let name = format!("k{name}");
            match step {
                0 | 1 => drop(script.ask(set(&name, "y"))),
                2 => drop(script.ask(KvpRequest::Delete(Pool::External, key(&name)))),
                3 => script.advance(secs(20)),
                _ => {
                    if let Some(sent) = script.try_take() {
                        let reply = if first {
                            daemon.reply(sent.payload)
                        } else {
                            answer(sent.payload, HResult::FAIL.0)
                        };
                        script.send(&reply);
                    }
                }
            }
            script.outcome();
        }
        for _ in 0..4 {
            script.serve(&mut daemon);
            script.advance(secs(6));
        }
        script.serve(&mut daemon);
        let mut has = daemon.pools[0].clone();
        has.sort();
        let wanted = script.device.items().iter();
        let wanted: Vec<_> = wanted.map(|(key, value)| (key.to_string(), value.to_string())).collect();
        prop_assert_eq!(has, wanted);
        prop_assert_eq!(script.device.unsent_items(), 0);
    }
}
