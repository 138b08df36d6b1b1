// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's serial console, seen from the test: kept whole, read in order.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::{Failure, Outcome};

#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    output: Mutex<Output>,
    changed: Condvar,
}

/// What a machine has printed so far, and how far it has been read.
#[derive(Debug)]
pub struct Console {
    shared: Arc<Shared>,
    at: usize,
}

impl Console {
    /// Collects all that `source` gives, and keeps it in a file too.
    pub fn collect(mut source: impl Read + Send + 'static, log: &Path) -> Outcome<Self> {
        let shared: Arc<Shared> = Arc::default();
        let mut log = File::create(log)?;
        let collecting = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let length = source.read(&mut buffer).unwrap_or(0);
                let data = buffer.get(..length).unwrap_or_default();
                let _ = log.write_all(data);
                let mut output = collecting.lock();
                output.bytes.extend_from_slice(data);
                output.ended = length == 0;
                drop(output);
                collecting.changed.notify_all();
                if length == 0 {
                    return;
                }
            }
        });
        Ok(Self { shared, at: 0 })
    }

    /// Everything so far, read or not.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).into_owned()
    }

    /// The next whole line, without its end.
    pub fn line(&mut self, deadline: Instant) -> Outcome<String> {
        let line = self.wait(deadline, |rest| {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            Some(rest.get(..=end).unwrap_or_default().to_vec())
        })?;
        self.at += line.len();
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// The next `count` bytes as they are.
    pub fn bytes(&mut self, count: usize, deadline: Instant) -> Outcome<Vec<u8>> {
        let bytes = self.wait(deadline, |rest| Some(rest.get(..count)?.to_vec()))?;
        self.at += count;
        Ok(bytes)
    }

    /// Waits until the text appears in what has not been read, and reads up to
    /// the end of it.
    pub fn expect(&mut self, text: &str, deadline: Instant) -> Outcome {
        let end = self.wait(deadline, |rest| {
            let found = rest
                .windows(text.len())
                .position(|part| part == text.as_bytes())?;
            Some(found + text.len())
        });
        self.at += end.map_err(|error| Failure(format!("waiting for {text:?}: {error}")))?;
        Ok(())
    }

    fn wait<T>(&self, deadline: Instant, ready: impl Fn(&[u8]) -> Option<T>) -> Outcome<T> {
        let mut output = self.shared.lock();
        loop {
            if let Some(value) = ready(output.bytes.get(self.at..).unwrap_or_default()) {
                return Ok(value);
            }
            if output.ended {
                return Err(Failure("the console ended".to_owned()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure(
                    "nothing more on the console, out of time".to_owned(),
                ));
            }
            let waited = self.shared.changed.wait_timeout(output, left);
            output = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
