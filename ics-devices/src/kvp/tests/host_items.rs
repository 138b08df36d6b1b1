// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's items in both of its pools: how many there may be, and how they get back
//! into a guest that has lost them.

use super::*;

#[test]
fn the_host_keeps_1024_items_and_no_more() {
    assert_eq!(MAX_ITEMS, 1024);
    let named = |number: usize| (key(&format!("{number:04}")), value("v"));
    let kvp = Kvp::new((0..MAX_ITEMS + 5).map(named));
    let mut script = Script::ready(kvp.with_auto_external([named(1), named(2)]), (4, 0));
    let mut daemon = Daemon::default();
    script.serve(&mut daemon);
    assert_eq!(script.device.items().len(), MAX_ITEMS);
    assert_eq!(daemon.pools[0].len(), MAX_ITEMS);
    let error = script.ask(set("one more", "v")).unwrap_err();
    assert_eq!(error.code(), "unsupported");
    assert!(error.to_string().contains(&MAX_ITEMS.to_string()));
    // One that is there may change, and one that goes leaves its place to another.
    let change = script.does(&mut daemon, set("1023", "new"));
    assert_eq!(change, Ok(KvpAnswer::Done));
    let delete = KvpRequest::Delete(Pool::External, key("0000"));
    assert_eq!(script.does(&mut daemon, delete), Ok(KvpAnswer::Done));
    let added = script.does(&mut daemon, set("one more", "v"));
    assert_eq!(added, Ok(KvpAnswer::Done));
    assert_eq!(script.device.items().len(), MAX_ITEMS);
    // Those of the guest's pool are not the host's.
    let guests = KvpRequest::Set(Pool::Guest, key("and another"), value("v"));
    assert_eq!(script.does(&mut daemon, guests), Ok(KvpAnswer::Done));
    assert_eq!(script.device.items().len(), MAX_ITEMS);
}

/// Operation, pool and index of the request that the guest has.
fn asked(script: &mut Exchange, daemon: &mut Daemon) -> (u8, u8, u32) {
    let request = script.take();
    let index = u32::from_le_bytes(request[32..36].try_into().unwrap());
    let asked = (request[28], request[29], index);
    let reply = daemon.reply(request);
    script.send(&reply);
    asked
}

fn both() -> (Exchange, Daemon) {
    let pair = |(name, text): (&str, &str)| (key(name), value(text));
    let kvp = Kvp::new([("a", "1"), ("b", "2"), ("c", "3")].map(pair));
    let facts = [("HostName", "h"), ("VirtualMachineId", "7")].map(pair);
    let mut script = Script::ready(kvp.with_auto_external(facts), (4, 0));
    let mut daemon = Daemon::default();
    script.serve(&mut daemon);
    (script, daemon)
}

#[test]
fn a_look_asks_for_the_last_item_of_either_pool_in_turn() {
    let (mut script, mut daemon) = both();
    for expected in [(3, 0, 2), (3, 3, 1), (3, 0, 2), (3, 3, 1)] {
        script.advance(secs(5));
        assert_eq!(asked(&mut script, &mut daemon), expected);
        assert_eq!(script.unread(), 0, "nothing is amiss");
    }
    // With one pool it is that one, also when it is the host's own.
    let mut alone = Exchange::exchange(&[("a", "1"), ("b", "2")]);
    let facts = [(key("k"), value("v"))];
    let mut own = Script::ready(Kvp::new([]).with_auto_external(facts), (4, 0));
    for (script, expected) in [(&mut alone, (3, 0, 1)), (&mut own, (3, 3, 0))] {
        let mut daemon = Daemon::default();
        script.serve(&mut daemon);
        for _ in 0..2 {
            script.advance(secs(5));
            assert_eq!(asked(script, &mut daemon), expected);
        }
    }
    // Without any it only shows whether the daemon is there.
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    script.advance(secs(5));
    assert_eq!(asked(&mut script, &mut daemon), (3, 0, 0));
    assert_eq!(script.unread(), 0);
}

#[test]
fn what_the_host_tells_of_itself_goes_the_way_of_the_users_items() {
    let (mut script, mut daemon) = both();
    let facts = [("HostName", "h"), ("VirtualMachineId", "7")];
    let facts = facts.map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(daemon.pools[3], facts);
    assert_eq!(daemon.pools[0].len(), 3);
    assert_eq!(script.detail(), "5 items of the host's, all in the guest");
    let listing = script.list(&mut daemon, Pool::AutoExternal);
    assert_eq!(
        items(&listing),
        [("HostName", "h"), ("VirtualMachineId", "7")]
    );
    // Not the user's to write.
    let (pool, name) = (Pool::AutoExternal, key("HostName"));
    for request in [
        KvpRequest::Set(pool, name.clone(), value("x")),
        KvpRequest::Delete(pool, name),
    ] {
        assert_eq!(script.ask(request).unwrap_err().code(), "unsupported");
    }
    // One that is lost is noticed, and refused ones are tried again.
    daemon.pools[3].remove(0);
    script.advance(secs(5));
    script.serve(&mut daemon);
    script.advance(secs(5));
    while let Some(sent) = script.try_take() {
        let reply = match sent.payload[28] {
            1 => answer(sent.payload, HResult::FAIL.0),
            _ => daemon.reply(sent.payload),
        };
        script.send(&reply);
    }
    assert_eq!(script.device.unsent_items(), 5);
    script.advance(secs(5));
    script.serve(&mut daemon);
    daemon.pools[3].sort();
    assert_eq!(daemon.pools[3], facts);
    // A daemon that starts anew has lost all.
    script.ask(set("b", "2")).unwrap();
    script.advance(secs(2));
    daemon = Daemon::default();
    script.serve(&mut daemon);
    assert_eq!(daemon.pools[3], facts);
    assert_eq!(daemon.pools[0].len(), 3);
}

#[test]
fn an_idle_guest_is_not_woken_for_what_the_host_tells_of_itself() {
    let facts = [(key("HostName"), value("h"))];
    let mut script = Script::ready(Kvp::new([]).with_auto_external(facts), (4, 0));
    let mut daemon = Daemon::default();
    script.serve(&mut daemon);
    script.device.watch(false);
    script.poke();
    daemon.pools[3].clear();
    script.advance(secs(24 * 3600));
    assert_eq!(script.unread(), 0);
    // It is put right as soon as somebody watches.
    script.device.watch(true);
    script.poke();
    script.serve(&mut daemon);
    assert_eq!(daemon.pools[3].len(), 1);
}
