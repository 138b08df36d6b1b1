// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Telling a person what is being waited for, on standard error.

use std::io::IsTerminal;
use std::time::Instant;

/// A line about something slow, shown always.
pub fn say(text: impl std::fmt::Display) {
    eprintln!("xtask: {text}");
}

/// A line about something that happens every time: shown to people only, so
/// that a program's captured standard error stays its own.
pub fn whisper(text: impl std::fmt::Display) {
    if std::io::stderr().is_terminal() {
        say(text);
    }
}

/// Announces a slow step and says how long it took.
pub fn step<T>(
    what: &str,
    run: impl FnOnce() -> crate::error::Result<T>,
) -> crate::error::Result<T> {
    say(format_args!("{what} ..."));
    let start = Instant::now();
    let result = run()?;
    say(format_args!(
        "{what}: done in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(result)
}
