// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Routes of the registry of Hyper-V socket services.

use super::http::Request;
use super::query::decoded;
use super::routes::{Op, body};
use super::types::ApiError;
use crate::vsock::registry::{HvsocketBody, HvsocketRequest, parse_service};

/// Finds the operation of a request; nothing if the path is another's.
pub fn route(request: &Request, parts: &[&str], method: &str) -> Option<Result<Op, ApiError>> {
    Some(match (parts, method) {
        (["v1", "hvsocket", "services"], "GET") => Ok(Op::Hvsocket(HvsocketRequest::List)),
        (["v1", "hvsocket", "services", service], "PUT" | "DELETE") => {
            change(request, method, service).map(Op::Hvsocket)
        }
        _ => return None,
    })
}

/// What a path takes.
pub fn methods(parts: &[&str]) -> Option<&'static [&'static str]> {
    match parts {
        ["v1", "hvsocket", "services"] => Some(&["GET"]),
        ["v1", "hvsocket", "services", _] => Some(&["PUT", "DELETE"]),
        _ => None,
    }
}

fn change(request: &Request, method: &str, service: &str) -> Result<HvsocketRequest, ApiError> {
    let service = parse_service(&decoded(service)?).map_err(ApiError::bad_request)?;
    if method == "DELETE" {
        return Ok(HvsocketRequest::Unregister(service));
    }
    let body: HvsocketBody = body(request)?;
    let name = body.name.parse();
    let name = name.map_err(|error| ApiError::new(400, "bad-name", "api", format!("{error}")))?;
    Ok(HvsocketRequest::Register(service, name))
}

#[cfg(test)]
mod tests {
    use vmbus::hvsock::service_of_port;

    use super::*;

    fn find(method: &str, service: &str, body: &str) -> Result<Op, ApiError> {
        let request = Request {
            method: method.into(),
            target: String::new(),
            body: body.into(),
            keep_alive: true,
        };
        let parts = ["v1", "hvsocket", "services", service];
        route(&request, &parts, method).expect("a path of these services")
    }

    #[test]
    fn services_are_named_by_guid_or_port() {
        let echo = service_of_port(5000);
        let register = HvsocketRequest::Register(echo, "echo".parse().unwrap());
        let body = r#"{"name":"echo"}"#;
        for path in ["5000", "00001388-facb-11e6-bd58-64006a7986d3"] {
            assert_eq!(find("PUT", path, body), Ok(Op::Hvsocket(register.clone())));
            let unregister = HvsocketRequest::Unregister(echo);
            assert_eq!(find("DELETE", path, ""), Ok(Op::Hvsocket(unregister)));
        }
    }

    #[test]
    fn what_is_no_service_or_no_name_is_refused() {
        let code = |path, body| find("PUT", path, body).unwrap_err().code;
        assert_eq!(code("echo", r#"{"name":"echo"}"#), "bad-request");
        assert_eq!(code("4294967296", r#"{"name":"echo"}"#), "bad-request");
        assert_eq!(code("5000", ""), "bad-request");
        assert_eq!(code("5000", r#"{"name":"echo","x":1}"#), "bad-request");
        assert_eq!(code("5000", r#"{"name":"a/b"}"#), "bad-name");
        assert_eq!(code("5000", r#"{"name":"22"}"#), "bad-name");
    }
}
