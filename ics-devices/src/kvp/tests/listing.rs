// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pools without an end, of many items and of long ones: what a listing has of them,
//! and where the next one goes on.

use super::*;

#[test]
fn sixteen_unreadable_items_are_left_out_and_one_more_is_the_guests_trouble() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    daemon.pools[1] = numbered(18, "v");
    daemon.unreadable = (0..16).collect();
    let listing = script.list(&mut daemon, Pool::Guest);
    assert_eq!((listing.items.len(), listing.unreadable), (2, 16));
    daemon.unreadable.push(17);
    let failed = script.does(&mut daemon, KvpRequest::List(Pool::Guest, 0));
    assert_eq!(failed, Err(ServiceError::Guest(HResult::FAIL)));
}

fn numbered(count: u32, value: &str) -> Vec<(String, String)> {
    let all = (0..count).map(|number| (format!("{number:04}"), value.to_owned()));
    all.collect()
}

#[test]
fn a_guest_without_an_end_is_not_read_for_ever() {
    let mut script = Exchange::exchange(&[]);
    script
        .ask(KvpRequest::List(Pool::Guest, MAX_LISTED - 7))
        .unwrap();
    let mut daemon = Daemon::default();
    daemon.pools[1] = vec![("x".into(), "y".into())];
    let mut indices = Vec::new();
    while let Some(sent) = script.try_take() {
        let mut request = sent.payload;
        indices.push(u32::from_le_bytes(request[32..36].try_into().unwrap()));
        request[32..36].fill(0);
        let reply = daemon.reply(request);
        script.send(&reply);
    }
    // The last one only shows that there are more.
    assert_eq!(indices, (MAX_LISTED - 7..=MAX_LISTED).collect::<Vec<_>>());
    let Some(Ok(KvpAnswer::Items(listing))) = script.outcome() else {
        panic!("no listing");
    };
    assert_eq!((listing.items.len(), listing.cut), (7, true));
    assert_eq!(listing.next, None);
    let error = script
        .ask(KvpRequest::List(Pool::Guest, MAX_LISTED + 1))
        .unwrap_err();
    assert_eq!(error.code(), "unsupported");
    assert!(error.to_string().contains(&MAX_LISTED.to_string()));
}

#[test]
fn a_pool_of_as_many_items_as_are_listed_is_listed_whole_and_searched_to_its_end() {
    let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
    daemon.pools[1] = numbered(MAX_LISTED + 1, "v");
    let (mut from, mut parts, mut all) = (0, 0, Vec::new());
    let (mut cut, mut next) = (true, Some(0));
    while let Some(index) = next {
        assert!(cut && index >= from && usize::try_from(index) == Ok(all.len()));
        from = index;
        let listing = match script.does(&mut daemon, KvpRequest::List(Pool::Guest, index)) {
            Ok(KvpAnswer::Items(listing)) => listing,
            other => panic!("{other:?}"),
        };
        all.extend(listing.items);
        (cut, next) = (listing.cut, listing.next);
        parts += 1;
    }
    // 37 bytes each.
    assert_eq!((all.len(), parts, cut), (4096, 2, true));
    let last = KvpRequest::Get(Pool::Guest, key("4096"));
    let found = script.does(&mut daemon, last);
    assert!(matches!(found, Ok(KvpAnswer::Item(Some(item))) if item.value == "v"));
    daemon.pools[1].pop();
    let end = KvpRequest::List(Pool::Guest, from);
    let Ok(KvpAnswer::Items(listing)) = script.does(&mut daemon, end) else {
        panic!("no listing");
    };
    assert_eq!((listing.cut, listing.next), (false, None));
}

#[test]
fn a_listing_ends_before_its_limit_in_bytes_and_the_next_one_goes_on_there() {
    for (value, bytes) in [
        ("v".repeat(1000), 1036),
        ("\u{20ac}".repeat(500), 3036),
        ("\"\\".repeat(400), 1636),
        ("\u{1}\n".repeat(500), 6036),
    ] {
        let (mut script, mut daemon) = (Exchange::exchange(&[]), Daemon::default());
        let fit = MAX_LISTED_BYTES / bytes;
        let count = u32::try_from(fit + 3).unwrap();
        daemon.pools[1] = numbered(count, &value);
        let first = script.list(&mut daemon, Pool::Guest);
        assert_eq!(first.items.len(), fit, "{bytes} bytes each");
        assert_eq!((first.cut, first.next), (true, Some(count - 3)));
        let rest = KvpRequest::List(Pool::Guest, count - 3);
        let Ok(KvpAnswer::Items(rest)) = script.does(&mut daemon, rest) else {
            panic!("no listing");
        };
        let keys: Vec<_> = rest.items.iter().map(|item| item.key.clone()).collect();
        let expected: Vec<_> = (count - 3..count).map(|n| format!("{n:04}")).collect();
        assert_eq!(keys, expected);
        assert_eq!((rest.cut, rest.next), (false, None));
        // With as many as fit there is nothing more.
        daemon.pools[1].truncate(fit);
        let whole = script.list(&mut daemon, Pool::Guest);
        assert_eq!((whole.items.len(), whole.cut), (fit, false));
    }
}
