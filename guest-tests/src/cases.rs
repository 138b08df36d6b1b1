// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest tests, one file per topic.

mod api;
mod boot;
mod console;
mod cost;
mod faults;
mod fcopy;
mod hardening;
mod kvp;
mod lifecycle;
mod measured;
mod memory;
mod pause;
mod services;
mod soak;
mod systemd;
mod terminal;
mod usage;
mod vmbus;
mod vsock;
mod vss;

pub use api::FUZZ as API_FUZZ;

use crate::suite::Case;

/// All cases, in the order they are run.
pub fn all() -> Vec<Case> {
    [
        boot::CASES,
        memory::CASES,
        lifecycle::CASES,
        console::CASES,
        terminal::CASES,
        usage::CASES,
        hardening::CASES,
        faults::CASES,
        vmbus::CASES,
        vmbus::channel::CASES,
        vmbus::restart::CASES,
        services::CASES,
        services::errors::CASES,
        services::shutdown::CASES,
        services::time::CASES,
        services::toggle::CASES,
        kvp::CASES,
        vss::CASES,
        pause::CASES,
        fcopy::CASES,
        api::CASES,
        systemd::CASES,
        vsock::CASES,
        soak::CASES,
        cost::CASES,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = super::all().iter().map(|case| case.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
