// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which request means which operation.

use ics_devices::{KvpRequest, VssRequest};
use serde::de::DeserializeOwned;

use super::data::{self, FileCopy};
use super::http::Request;
use super::hvsocket;
use super::query::{Query, decoded};
use super::types::{ApiError, PowerBody, ServicePatch};
use crate::vsock::registry::HvsocketRequest;

/// Something that the API can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// `GET /v1/vm`; with `look=false`, false: as far as it is known.
    Status(bool),
    /// `PUT /v1/vm/power`
    Power(PowerBody),
    /// `GET /v1/services`
    Services,
    /// `PATCH /v1/services/NAME`
    SetService(String, bool),
    /// `GET /v1/time`
    Time,
    /// `POST /v1/time/sync`
    TimeSync,
    /// `/v1/kvp/…` and `/v1/ip/…`
    Kvp(KvpRequest),
    /// `POST /v1/vss/…`
    Vss(VssRequest),
    /// `GET /v1/vss`
    VssState,
    /// `/v1/hvsocket/services…`
    Hvsocket(HvsocketRequest),
    /// `POST /v1/files`, while its body comes.
    Copy(FileCopy),
}

/// What a request leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// An operation with one answer.
    Op(Op),
    /// `GET /v1/events?follow=false`: those so far, or so many of them.
    Past(Option<u64>),
    /// A stream of what comes, to the client's end or for so many lines.
    Stream(Stream, Option<u64>),
}

/// What can be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// `GET /v1/events`, beginning with those so far.
    Events,
    /// `GET /v1/trace`.
    Trace,
}

/// Finds the route of a request: first whether there is such a path, then whether it
/// takes the method, then whether the query has nothing but what it takes.
pub fn route(request: &Request) -> Result<Route, ApiError> {
    let (path, query) = split(&request.target);
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let method = request.method.as_str();
    let there_is_nothing = || {
        let message = format!("there is nothing at {path}");
        ApiError::new(404, "not-found", "api", message)
    };
    let methods = methods(&parts).ok_or_else(there_is_nothing)?;
    if !methods.contains(&method) {
        return Err(ApiError::method_not_allowed(path, methods, method));
    }
    let query = Query::parse(query, parameters(&parts))?;
    let op = match (parts.as_slice(), method) {
        (["v1", "vm"], "GET") => Op::Status(query.flag("look", true)?),
        (["v1", "vm", "power"], "PUT") => Op::Power(body(request)?),
        (["v1", "services"], "GET") => Op::Services,
        (["v1", "services", name], "PATCH") => {
            let patch: ServicePatch = body(request)?;
            Op::SetService(decoded(name)?, patch.enabled)
        }
        (["v1", "time"], "GET") => Op::Time,
        (["v1", "time", "sync"], "POST") => Op::TimeSync,
        (["v1", "events"], "GET") => {
            let lines = query.count("lines")?;
            return Ok(if query.flag("follow", true)? {
                Route::Stream(Stream::Events, lines)
            } else {
                Route::Past(lines)
            });
        }
        (["v1", "trace"], "GET") => {
            return Ok(Route::Stream(Stream::Trace, query.count("lines")?));
        }
        (parts, _) => {
            let op = data::route(request, parts, method);
            op.or_else(|| hvsocket::route(request, parts, method))
                .ok_or_else(there_is_nothing)??
        }
    };
    Ok(Route::Op(op))
}

/// The path and the query of a target.
pub(super) fn split(target: &str) -> (&str, &str) {
    target.split_once('?').unwrap_or((target, ""))
}

/// What a path takes; nothing if there is no such path.
fn methods(parts: &[&str]) -> Option<&'static [&'static str]> {
    Some(match parts {
        ["v1", "vm" | "services" | "time" | "events" | "trace"] => &["GET"],
        ["v1", "vm", "power"] => &["PUT"],
        ["v1", "services", _] => &["PATCH"],
        ["v1", "time", "sync"] => &["POST"],
        _ => return data::methods(parts).or_else(|| hvsocket::methods(parts)),
    })
}

/// What a path's query may have in it.
fn parameters(parts: &[&str]) -> &'static [&'static str] {
    match parts {
        ["v1", "vm"] => &["look"],
        ["v1", "events"] => &["follow", "lines"],
        ["v1", "trace"] => &["lines"],
        ["v1", "kvp", _] => &["from"],
        _ => &[],
    }
}

pub(super) fn body<T: DeserializeOwned>(request: &Request) -> Result<T, ApiError> {
    serde_json::from_slice(&request.body).map_err(|error| {
        ApiError::bad_request(format!("the body is not what is expected: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::types::PowerAction;
    use super::*;

    fn find(method: &str, target: &str, body: &str) -> Result<Route, ApiError> {
        route(&Request {
            method: method.into(),
            target: target.into(),
            body: body.into(),
            keep_alive: true,
        })
    }

    #[test]
    fn every_path_of_the_interface_is_found() {
        assert_eq!(find("GET", "/v1/vm", ""), Ok(Route::Op(Op::Status(true))));
        assert_eq!(
            find("GET", "/v1/vm?look=false", ""),
            Ok(Route::Op(Op::Status(false)))
        );
        assert_eq!(find("GET", "/v1/services", ""), Ok(Route::Op(Op::Services)));
        assert_eq!(
            find("GET", "/v1/events", ""),
            Ok(Route::Stream(Stream::Events, None))
        );
        assert_eq!(
            find("GET", "/v1/trace?lines=5", ""),
            Ok(Route::Stream(Stream::Trace, Some(5)))
        );
        assert_eq!(
            find("GET", "/v1/events?follow=false", ""),
            Ok(Route::Past(None))
        );
        assert_eq!(
            find("GET", "/v1/events?lines=7&follow=false", ""),
            Ok(Route::Past(Some(7)))
        );
        assert_eq!(find("GET", "/v1/time", ""), Ok(Route::Op(Op::Time)));
        assert_eq!(
            find("POST", "/v1/time/sync", ""),
            Ok(Route::Op(Op::TimeSync))
        );
        assert_eq!(
            find("PATCH", "/v1/services/vss", r#"{"enabled":false}"#),
            Ok(Route::Op(Op::SetService("vss".into(), false)))
        );
    }

    #[test]
    fn a_power_request_has_defaults() {
        let route = find("PUT", "/v1/vm/power", r#"{"action":"shutdown"}"#);
        let Ok(Route::Op(Op::Power(body))) = route else {
            panic!("{route:?}");
        };
        assert_eq!(
            (body.action, body.force, body.timeout_ms),
            (PowerAction::Shutdown, false, 60_000)
        );
    }

    #[test]
    fn a_query_has_what_its_path_takes_and_nothing_else() {
        for (target, said) in [
            ("/v1/vm?look=banana", "look is true or false, not 'banana'"),
            ("/v1/vm?look", "look is true or false, not ''"),
            (
                "/v1/vm?loook=true",
                "'loook' is no parameter here: there is look",
            ),
            ("/v1/vm?look=true&look=false", "look is there twice"),
            ("/v1/time?x=1", "'x' is no parameter here: there are none"),
            ("/v1/events?follow=1", "follow is true or false, not '1'"),
            (
                "/v1/events?lines=-1",
                "lines is a number from 1 on, not '-1'",
            ),
            (
                "/v1/trace?follow=true",
                "'follow' is no parameter here: there is lines",
            ),
        ] {
            let error = find("GET", target, "").unwrap_err();
            assert_eq!(error.status, 400, "{target}");
            assert_eq!(error.message, format!("the query: {said}"), "{target}");
        }
        assert_eq!(
            find("GET", "/v1/vm?l%6Fok=fals%65&", ""),
            Ok(Route::Op(Op::Status(false)))
        );
        // What is not there takes no query either.
        assert_eq!(find("GET", "/v1/nothing?x=1", "").unwrap_err().status, 404);
        assert_eq!(find("PUT", "/v1/vm?x=1", "").unwrap_err().status, 405);
    }

    #[test]
    fn who_uses_a_wrong_method_is_told_the_right_ones() {
        for (target, wanted, said) in [
            ("/v1/vm", "GET", "/v1/vm takes GET, not BREW"),
            (
                "/v1/ip/x",
                "GET, PUT",
                "/v1/ip/x takes GET or PUT, not BREW",
            ),
            (
                "/v1/kvp/guest/a",
                "GET, PUT, DELETE",
                "/v1/kvp/guest/a takes GET, PUT or DELETE, not BREW",
            ),
        ] {
            let error = find("BREW", target, "").unwrap_err();
            assert_eq!((error.status, error.message.as_str()), (405, said));
            assert_eq!(error.allow.join(", "), wanted);
        }
    }

    #[test]
    fn wrong_requests_are_told_what_is_wrong() {
        let status = |method, target, body| find(method, target, body).unwrap_err().status;
        assert_eq!(status("GET", "/", ""), 404);
        assert_eq!(status("GET", "/v2/vm", ""), 404);
        assert_eq!(status("POST", "/v1/vm", ""), 405);
        assert_eq!(status("GET", "/v1/vm/power", ""), 405);
        assert_eq!(status("GET", "/v1/trace?lines=0", ""), 400);
        assert_eq!(status("PUT", "/v1/vm/power", "{}"), 400);
        assert_eq!(
            status("PUT", "/v1/vm/power", r#"{"action":"explode"}"#),
            400
        );
        assert_eq!(
            status("PUT", "/v1/vm/power", r#"{"action":"kill","x":1}"#),
            400
        );
    }
}
