// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a file is not in the guest. Linux has three answers for all that can go
//! wrong; questions after a failure tell more.

use super::name::NameError;
use crate::status::ServiceError;
use crate::wire::HResult;

/// Why a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FcopyError {
    /// As any service can fail.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The guest's daemon does not take this name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The guest has such a file.
    #[error("the file exists in the guest, and was not to be overwritten")]
    Exists,
    /// The guest has no such directory.
    #[error("the directory does not exist in the guest, and was not to be made")]
    NoDirectory,
    /// The guest cannot make the directory.
    #[error("the guest cannot make the directory: its file system is read-only or full")]
    CannotMakeDirectory,
    /// The directory is there, and the file cannot be created.
    #[error(
        "the guest cannot create the file, though its directory is there: the file system is \
         read-only, or full, or a directory has this name"
    )]
    CannotCreate,
    /// The guest's disk is full.
    #[error("the guest's disk is full")]
    DiskFull,
    /// The guest cannot write into the file.
    #[error("the guest failed to write into the file: {0}")]
    Write(HResult),
    /// Its user has given up.
    #[error("cancelled")]
    Cancelled,
    /// No data came.
    #[error("no data came for a minute")]
    Stalled,
}

impl FcopyError {
    /// The error's code in the control API.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Service(error) => error.code(),
            Self::Name(_) => "bad-name",
            Self::Cancelled | Self::Stalled => "cancelled",
            _ => "guest-error",
        }
    }

    /// The layer that failed, in the control API.
    pub const fn layer(self) -> &'static str {
        match self {
            Self::Service(error) => error.layer(),
            Self::Cancelled | Self::Stalled => "host",
            Self::Name(_) => "daemon",
            _ => "guest",
        }
    }

    /// The guest's status, if it gave one.
    pub const fn hresult(self) -> Option<HResult> {
        match self {
            Self::Service(error) => error.hresult(),
            Self::Exists => Some(HResult::ALREADY_EXISTS),
            Self::DiskFull => Some(HResult::DISK_FULL),
            Self::NoDirectory | Self::CannotMakeDirectory | Self::CannotCreate => {
                Some(HResult::FAIL)
            }
            Self::Write(status) => Some(status),
            Self::Name(_) | Self::Cancelled | Self::Stalled => None,
        }
    }
}

/// How a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}{}", if *.partial { "; a part of the file may be left in the guest" } else { "" })]
pub struct FcopyFailure {
    /// Why.
    pub error: FcopyError,
    /// A part of the file may be left in the guest.
    pub partial: bool,
}
