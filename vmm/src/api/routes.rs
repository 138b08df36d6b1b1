// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which request means which operation.

use ics_devices::{KvpRequest, VssRequest};
use serde::de::DeserializeOwned;

use super::data::{self, FileCopy};
use super::http::Request;
use super::hvsocket;
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
    /// `GET /v1/events?follow=false`: those so far.
    Past,
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

/// Finds the route of a request.
pub fn route(request: &Request) -> Result<Route, ApiError> {
    let (path, query) = request
        .target
        .split_once('?')
        .unwrap_or((&request.target, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let method = request.method.as_str();
    let op = match (parts.as_slice(), method) {
        (["v1", "vm"], "GET") => Op::Status(query.split('&').all(|word| word != "look=false")),
        (["v1", "vm", "power"], "PUT") => Op::Power(body(request)?),
        (["v1", "services"], "GET") => Op::Services,
        (["v1", "services", name], "PATCH") => {
            let patch: ServicePatch = body(request)?;
            Op::SetService((*name).to_owned(), patch.enabled)
        }
        (["v1", "time"], "GET") => Op::Time,
        (["v1", "time", "sync"], "POST") => Op::TimeSync,
        (["v1", "events"], "GET") => {
            let past = query.split('&').any(|word| word == "follow=false");
            return Ok(if past {
                Route::Past
            } else {
                Route::Stream(Stream::Events, lines(query)?)
            });
        }
        (["v1", "trace"], "GET") => return Ok(Route::Stream(Stream::Trace, lines(query)?)),
        (parts, _) => {
            let op = data::route(request, parts, method);
            match op.or_else(|| hvsocket::route(request, parts, method)) {
                Some(op) => op?,
                None => return Err(unknown(parts, method, path)),
            }
        }
    };
    Ok(Route::Op(op))
}

/// How many lines of a stream are wanted.
fn lines(query: &str) -> Result<Option<u64>, ApiError> {
    let mut words = query.split('&');
    let Some(count) = words.find_map(|word| word.strip_prefix("lines=")) else {
        return Ok(None);
    };
    match count.parse() {
        Ok(count) if count > 0 => Ok(Some(count)),
        _ => Err(ApiError::bad_request(format!(
            "lines: expected a number from 1 on, not '{count}'"
        ))),
    }
}

fn unknown(parts: &[&str], method: &str, path: &str) -> ApiError {
    let allowed = match parts {
        ["v1", "vm" | "services" | "time" | "events" | "trace"] => "GET",
        ["v1", "vm", "power"] => "PUT",
        ["v1", "services", _] => "PATCH",
        ["v1", "time", "sync"] => "POST",
        _ => {
            let Some(allowed) = data::allowed(parts).or_else(|| hvsocket::allowed(parts)) else {
                let message = format!("there is nothing at {path}");
                return ApiError::new(404, "not-found", "api", message);
            };
            allowed
        }
    };
    let message = format!("{path} takes {allowed}, not {method}");
    ApiError::new(405, "method-not-allowed", "api", message)
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
        assert_eq!(
            find("GET", "/v1/services?x=1", ""),
            Ok(Route::Op(Op::Services))
        );
        assert_eq!(
            find("GET", "/v1/events", ""),
            Ok(Route::Stream(Stream::Events, None))
        );
        assert_eq!(
            find("GET", "/v1/trace?lines=5", ""),
            Ok(Route::Stream(Stream::Trace, Some(5)))
        );
        assert_eq!(find("GET", "/v1/events?follow=false", ""), Ok(Route::Past));
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
