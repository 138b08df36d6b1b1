// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes wrong between this crate and KVM.

use std::io;

/// A call to the host's kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No descriptor for an interrupt.
    #[error("host: no eventfd: {0}")]
    Eventfd(io::Error),
    /// No descriptor for a synthetic timer.
    #[error("host: no timer: {0}")]
    Timer(io::Error),
    /// KVM refused.
    #[error("KVM: {what}: {source}")]
    Call {
        /// What was being done.
        what: &'static str,
        /// What KVM said.
        source: io::Error,
    },
}

/// Says what was being done when a call failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, KvmError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: &'static str) -> Result<T, KvmError> {
        self.map_err(|source| KvmError::Call { what, source })
    }
}
