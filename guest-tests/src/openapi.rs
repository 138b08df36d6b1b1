// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether an answer of the control API is what `docs/openapi.json` says.
//!
//! Knows as much of JSON Schema as the description uses, and is stricter: a field
//! that is not described is a mistake unless more are allowed in so many words. `vmm/tests/openapi.rs` is made of this file
//! too, so it depends on nothing but serde_json.

use serde_json::{Map, Value};

/// The description.
#[derive(Clone, Debug)]
pub struct Description(Value);

/// An operation in it.
#[derive(Clone, Debug)]
pub struct Operation {
    /// `GET`, `PUT`, …
    pub method: String,
    /// With `{name}` where something is to be put.
    pub path: String,
    /// Its own part of the description.
    pub about: Value,
}

impl Description {
    /// From its file's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = serde_json::from_str(text);
        parsed.map(Self).map_err(|error| error.to_string())
    }

    /// All operations.
    pub fn operations(&self) -> Vec<Operation> {
        let mut all = Vec::new();
        for (path, methods) in entries(self.0.get("paths")) {
            for (method, about) in entries(Some(methods)) {
                all.push(Operation {
                    method: method.to_uppercase(),
                    path: path.clone(),
                    about: about.clone(),
                });
            }
        }
        all
    }

    /// Checks the answer to a request.
    pub fn check_answer(
        &self,
        method: &str,
        target: &str,
        status: u16,
        body: &Value,
    ) -> Result<(), String> {
        let path = target.split('?').next().unwrap_or(target);
        let fits =
            |operation: &Operation| operation.method == method && same_path(&operation.path, path);
        let operation = self.operations().into_iter().find(fits);
        let operation = operation.ok_or_else(|| format!("{method} {path} is not described"))?;
        let key = status.to_string();
        let response = operation
            .about
            .get("responses")
            .and_then(|all| all.get(&key));
        let response = response.ok_or_else(|| format!("{method} {path} never answers {key}"))?;
        let content = self.resolve(response)?.get("content");
        let (_, media) = entries(content)
            .next()
            .ok_or_else(|| format!("{method} {path} {key} has no content"))?;
        self.check(media.get("schema").unwrap_or(&Value::Null), body, "")
            .map_err(|why| format!("{method} {path} answers {key} {body}: {why}"))
    }

    /// Checks a value against one of the named schemas.
    pub fn check_named(&self, name: &str, value: &Value) -> Result<(), String> {
        let schema = self.0.pointer(&format!("/components/schemas/{name}"));
        let schema = schema.ok_or_else(|| format!("no schema {name}"))?;
        self.check(schema, value, name)
    }

    /// Checks a request's body.
    pub fn check_body(&self, operation: &Operation, body: &Value) -> Result<(), String> {
        let schema = operation
            .about
            .pointer("/requestBody/content/application~1json/schema");
        schema.map_or(Ok(()), |schema| self.check(schema, body, "body"))
    }

    /// How many of these schemas a value fits.
    fn fitting(&self, schemas: &Value, value: &Value, at: &str) -> usize {
        let all = list(schemas).iter();
        all.filter(|one| self.check(one, value, at).is_ok()).count()
    }

    fn resolve<'a>(&'a self, part: &'a Value) -> Result<&'a Value, String> {
        let Some(name) = part.get("$ref").and_then(Value::as_str) else {
            return Ok(part);
        };
        let found = name.strip_prefix('#').and_then(|name| self.0.pointer(name));
        found.ok_or_else(|| format!("{name} leads nowhere"))
    }

    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolve(schema)?;
        let Some(rules) = schema.as_object() else {
            return Err(format!("{at}: no schema"));
        };
        let more = rules.get("additionalProperties") == Some(&Value::Bool(true));
        for (rule, wanted) in rules {
            let good = match rule.as_str() {
                "type" => strings(wanted).iter().any(|name| is(name, value)),
                "enum" => wanted.as_array().is_some_and(|all| all.contains(value)),
                "const" => wanted == value,
                "minimum" => !value.is_number() || number(value) >= number(wanted),
                "maximum" => !value.is_number() || number(value) <= number(wanted),
                "minLength" => !value.is_string() || length(value) >= wanted.as_u64(),
                "maxLength" => !value.is_string() || length(value) <= wanted.as_u64(),
                "minItems" => !value.is_array() || items(value) >= wanted.as_u64(),
                "maxItems" => !value.is_array() || items(value) <= wanted.as_u64(),
                "oneOf" => self.fitting(wanted, value, at) == 1,
                "anyOf" => self.fitting(wanted, value, at) > 0,
                "allOf" => {
                    for one in list(wanted) {
                        self.check(one, value, at)?;
                    }
                    true
                }
                "required" => strings(wanted).iter().all(|name| value.get(name).is_some()),
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(wanted, item, &format!("{at}[{index}]"))?;
                    }
                    true
                }
                "properties" => {
                    for (name, item) in entries(Some(value)) {
                        let at = format!("{at}.{name}");
                        match wanted.get(name) {
                            Some(one) => self.check(one, item, &at)?,
                            None if more => {}
                            None => return Err(format!("{at} is not described")),
                        }
                    }
                    true
                }
                // A pattern is checked by `cargo xtask test --api-fuzz` only.
                "additionalProperties" | "description" | "default" | "pattern" => true,
                other => return Err(format!("{at}: the rule {other} is not known here")),
            };
            if !good {
                return Err(format!("{at} is {value}, against {rule} {wanted}"));
            }
        }
        Ok(())
    }
}

/// A number that compares; those of an answer are small enough for it.
fn number(value: &Value) -> Option<f64> {
    value.as_f64()
}

/// Characters of a text.
fn length(value: &Value) -> Option<u64> {
    u64::try_from(value.as_str()?.chars().count()).ok()
}

fn items(value: &Value) -> Option<u64> {
    u64::try_from(value.as_array()?.len()).ok()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[][..], Vec::as_slice)
}

/// Whether a path is what a template says.
fn same_path(template: &str, path: &str) -> bool {
    let (mut wanted, mut parts) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), parts.next()) {
            (None, None) => return true,
            (Some(one), Some(other)) if one.starts_with('{') || one == other => {}
            _ => return false,
        }
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        _ => false,
    }
}

/// One string, or several.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn entries(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter)
}
