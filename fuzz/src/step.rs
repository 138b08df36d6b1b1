// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sequences of steps as bytes, both ways.

use arbitrary::{Result, Unstructured};

/// More steps than this teach nothing new, and take long.
const MAX_STEPS: usize = 100;

/// A step of a target.
pub trait Step: Sized {
    /// Reads a step from the front of `input`.
    fn read(input: &mut Unstructured<'_>) -> Result<Self>;
    /// Writes what [`Step::read`] reads as this step.
    fn write(&self, out: &mut Vec<u8>);
}

/// The steps in `data`, up to the first that is cut short.
pub fn steps<S: Step>(data: &[u8]) -> impl Iterator<Item = S> + '_ {
    let mut input = Unstructured::new(data);
    std::iter::from_fn(move || {
        if input.is_empty() {
            return None;
        }
        S::read(&mut input).ok()
    })
    .take(MAX_STEPS)
}

/// The bytes of `steps`.
pub fn bytes<S: Step>(steps: &[S]) -> Vec<u8> {
    let mut out = Vec::new();
    for step in steps {
        step.write(&mut out);
    }
    out
}

/// The next `N` bytes.
pub fn array<const N: usize>(input: &mut Unstructured<'_>) -> Result<[u8; N]> {
    let bytes = input.bytes(N)?;
    Ok(bytes.try_into().expect("N bytes"))
}

/// One byte that says how many follow, and as many of these as there are.
pub fn blob(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let [len] = array(input)?;
    let len = usize::from(len).min(input.len());
    Ok(input.bytes(len)?.to_vec())
}

/// What [`blob`] reads as `bytes`, of which there are at most 255.
pub fn write_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(u8::try_from(bytes.len()).expect("a short blob"));
    out.extend(bytes);
}
