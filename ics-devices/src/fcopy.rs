// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! File copy: a file of the host's into the guest (protocol 6.9, 6.10).
//!
//! ```text
//!   start ─► created ─► fragment, answer, … ─► complete ─► copied
//!     │         └──── failed, cancelled ─► cancel ─► close ─► failed
//!     └─ refused ─► why? is there a daemon, a directory ─► failed
//! ```
//!
//! * One fragment is in flight. Its data comes from the user in pieces of any
//!   size, of which a few fragments are kept: [`Fcopy::room`], [`Fcopy::push`].
//! * A file is complete when as many bytes as were announced are written, each
//!   fragment acknowledged.
//! * Linux says the same of most failures. To ask for a file that exists, to be
//!   created and not overwritten, changes nothing and tells more: whether there
//!   is a daemon, a directory, and a locale that the newer daemon can work in.
//! * A file is cancelled only if it was created: the older daemon removes the
//!   file of which it heard last, also one that it refused to overwrite.

use std::time::Duration;

use crate::device::Ic;
use crate::look::Look;
use crate::protocol::{Answer, BadAnswer, Deadline, Protocol, Request, moved};
use crate::service::Service;
use crate::slot::{Cancelled, Ticket};
use crate::status::{ServiceError, ServiceState};
use crate::wire::{HResult, IcVersion, Versions};

mod copy;
mod error;
mod name;
mod wire;

use copy::{Copy, PATIENCE, Step};
pub use error::{FcopyError, FcopyFailure};
pub use name::{FcopyDaemon, NameError, Target};
pub use wire::FRAGMENT;
use wire::{Operation, emit_bare, emit_start};

/// The file copy service.
///
/// ```
/// use std::time::Duration;
/// use ics_devices::{Fcopy, NewFile, ServiceError};
/// use ics_devices::fcopy::Target;
///
/// let mut fcopy = Fcopy::new();
/// let file = NewFile::new(Target::new("/etc/motd")?, 5);
/// // Nobody has opened the channel.
/// let refused = fcopy.start(Duration::ZERO, file);
/// assert_eq!(refused, Err(ServiceError::NotOpen.into()));
/// # Ok::<(), ics_devices::fcopy::NameError>(())
/// ```
pub type Fcopy = Ic<FcopyProtocol>;

/// The guest's timer for its daemon is 30 s: an answer comes before this.
const ANSWER_LIMIT: Duration = Duration::from_secs(35);
/// The ring's transaction id in all packets of the newer daemon.
const UIO_TRANSACTION: u64 = u64::MAX;

/// A file that the guest is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Where.
    pub target: Target,
    /// Its size.
    pub size: u64,
    /// A file that exists is overwritten.
    pub overwrite: bool,
    /// Directories that do not exist are made.
    pub mkdir: bool,
}

impl NewFile {
    /// Neither overwritten nor in a new directory.
    pub const fn new(target: Target, size: u64) -> Self {
        Self {
            target,
            size,
            overwrite: false,
            mkdir: false,
        }
    }
}

/// A file that the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Its size.
    pub size: u64,
    /// In how many fragments.
    pub fragments: u64,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FcopyOutcome {
    /// Which.
    pub ticket: Ticket,
    /// How.
    pub result: Result<Copied, FcopyFailure>,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The guest has acknowledged so much.
    pub written: u64,
    /// Of so much.
    pub size: u64,
    /// The guest has created the file and takes data.
    pub started: bool,
}

/// What is in the ring, or about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Copy,
    Look,
    /// After a copy whose end is unknown.
    CleanUp(Operation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guest {
    Unknown,
    Ready,
    NoDaemon,
    /// The newer daemon cannot read names without its locale.
    NoLocale,
}

/// What file copy adds to what all services have in common.
#[derive(Debug)]
pub struct FcopyProtocol {
    last: u64,
    copy: Option<Copy>,
    outcome: Option<FcopyOutcome>,
    daemon: FcopyDaemon,
    guest: Guest,
    look: Look,
    purpose: Option<Purpose>,
    /// What serves the purpose is in the ring, and an answer to come.
    in_ring: bool,
    /// The operation that was given up and is still to be answered.
    owed: Option<Operation>,
    clean_up: Option<Operation>,
    copied: u64,
}

impl Default for FcopyProtocol {
    fn default() -> Self {
        Self {
            last: 0,
            copy: None,
            outcome: None,
            daemon: FcopyDaemon::Driver,
            guest: Guest::Unknown,
            look: Look::default(),
            purpose: None,
            in_ring: false,
            owed: None,
            clean_up: None,
            copied: 0,
        }
    }
}

impl Fcopy {
    /// A file copy service that does nothing until it is asked to.
    pub fn new() -> Self {
        Self::from_protocol(FcopyProtocol::default())
    }

    /// Begins a copy. Poke the host, push data, then wait for the outcome.
    pub fn start(&mut self, now: Duration, file: NewFile) -> Result<Ticket, FcopyError> {
        self.admit()?;
        let protocol = &mut self.protocol;
        if protocol.owed.is_some() {
            // Nobody else's copy is in the way, but a guest that does not answer.
            return Err(ServiceError::Timeout.into());
        }
        if protocol.copy.is_some() || protocol.clean_up.is_some() {
            return Err(ServiceError::Busy.into());
        }
        if protocol.guest == Guest::NoLocale {
            return Err(NO_LOCALE.into());
        }
        file.target.check(protocol.daemon)?;
        protocol.last += 1;
        let ticket = Ticket(protocol.last);
        protocol.copy = Some(Copy::new(now, ticket, file));
        Ok(ticket)
    }

    /// How many bytes [`push`](Self::push) takes now. Poke the host after
    /// pushing; there is more room when it has sent them.
    pub fn room(&self) -> usize {
        self.protocol.copy.as_ref().map_or(0, Copy::room)
    }

    /// Takes the next bytes of the file, as many as there is room for; how many
    /// that was.
    pub fn push(&mut self, now: Duration, data: &[u8]) -> usize {
        let copy = self.protocol.copy.as_mut();
        copy.map_or(0, |copy| copy.push(now, data))
    }

    /// How the last copy ended, once.
    pub fn take_outcome(&mut self) -> Option<FcopyOutcome> {
        self.protocol.outcome.take()
    }

    /// How far the copy is, if there is one.
    pub fn progress(&self) -> Option<Progress> {
        self.protocol.copy.as_ref().map(|copy| Progress {
            written: copy.written,
            size: copy.file.size,
            started: matches!(copy.step, Step::Data | Step::Complete),
        })
    }

    /// Which daemon the guest has, once the versions are agreed on.
    pub fn daemon(&self) -> Option<FcopyDaemon> {
        self.versions().ok().map(|_| self.protocol.daemon)
    }
}

impl Default for Fcopy {
    fn default() -> Self {
        Self::new()
    }
}

const NO_LOCALE: ServiceError = ServiceError::Unsupported(
    "the guest's hv_fcopy_uio_daemon cannot read file names: it needs the locale en_US.UTF-8",
);

/// What comes of an answer.
enum Next {
    GoOn,
    Copied,
    Failed(FcopyFailure),
}

fn failed(error: FcopyError, partial: bool) -> Next {
    Next::Failed(FcopyFailure { error, partial })
}

impl FcopyProtocol {
    fn finish(&mut self, result: Result<Copied, FcopyFailure>) {
        if let Some(copy) = self.copy.take() {
            let ticket = copy.ticket;
            self.outcome = Some(FcopyOutcome { ticket, result });
        }
    }

    fn abort(&mut self, error: FcopyError) {
        let Some(copy) = &mut self.copy else {
            return;
        };
        copy.stalled_at = None;
        if self.purpose == Some(Purpose::Copy) && self.in_ring {
            copy.aborted.get_or_insert(error);
        } else if copy.is_created() {
            copy.step = Step::Cancel(error);
        } else if matches!(copy.step, Step::Start) {
            let partial = false;
            self.finish(Err(FcopyFailure { error, partial }));
        }
    }

    fn copy_answered(&mut self, now: Duration, status: HResult) -> Next {
        let daemon = self.daemon;
        let Some(copy) = &mut self.copy else {
            return Next::GoOn;
        };
        let ok = status.is_ok();
        match copy.step {
            Step::Start if ok => {
                self.guest = Guest::Ready;
                copy.next_data(now);
            }
            Step::Start => match status {
                HResult::ALREADY_EXISTS => return failed(FcopyError::Exists, false),
                HResult::FAIL if copy.aborted.is_none() => {
                    copy.step = match daemon {
                        FcopyDaemon::Driver => Step::AskDaemon,
                        FcopyDaemon::Uio => Step::AskDirectory,
                    };
                }
                _ => return failed(ServiceError::Guest(status).into(), false),
            },
            Step::AskDaemon if status == HResult::ALREADY_EXISTS => copy.step = Step::AskDirectory,
            Step::AskDaemon => {
                self.guest = Guest::NoDaemon;
                self.look.later(now);
                return failed(ServiceError::NoDaemon.into(), false);
            }
            Step::AskDirectory => {
                let error = match status {
                    HResult::ALREADY_EXISTS => FcopyError::CannotCreate,
                    _ if copy.file.mkdir => FcopyError::CannotMakeDirectory,
                    _ => FcopyError::NoDirectory,
                };
                return failed(error, false);
            }
            Step::Data if ok => {
                copy.acknowledged();
                copy.next_data(now);
            }
            Step::Data => {
                copy.step = Step::Cancel(match status {
                    HResult::DISK_FULL => FcopyError::DiskFull,
                    status => FcopyError::Write(status),
                });
            }
            Step::Complete if ok => return Next::Copied,
            Step::Complete => return failed(ServiceError::Guest(status).into(), true),
            Step::Cancel(error) if ok => return failed(error, false),
            Step::Cancel(error) => copy.step = Step::Close(error),
            Step::Close(error) => return failed(error, true),
        }
        if let Some(error) = copy.aborted.take() {
            copy.stalled_at = None;
            copy.step = match copy.step {
                // Nothing is missing from the file.
                Step::Complete if copy.file.size > 0 => Step::Complete,
                Step::Data | Step::Complete => Step::Cancel(error),
                Step::Start | Step::AskDaemon | Step::AskDirectory => return failed(error, false),
                step => step,
            };
        }
        Next::GoOn
    }

    fn looked(&mut self, now: Duration, status: HResult) {
        let exists = status == HResult::ALREADY_EXISTS;
        self.guest = match (self.daemon, exists) {
            (FcopyDaemon::Driver, true) | (FcopyDaemon::Uio, false) => Guest::Ready,
            (FcopyDaemon::Driver, false) => Guest::NoDaemon,
            (FcopyDaemon::Uio, true) => Guest::NoLocale,
        };
        self.look.ended();
        if self.guest == Guest::NoDaemon {
            self.look.later(now);
        }
    }

    /// What `purpose` sends.
    fn operation(&self, purpose: Purpose) -> Option<Operation> {
        match purpose {
            Purpose::Copy => self.copy.as_ref()?.operation(),
            Purpose::Look => Some(Operation::Start),
            Purpose::CleanUp(operation) => Some(operation),
        }
    }
}

impl Protocol for FcopyProtocol {
    const SERVICE: Service = Service::Fcopy;
    const FRAMEWORKS: &'static [IcVersion] = &[IcVersion::new(3, 0)];
    const VERSIONS: &'static [IcVersion] = &[IcVersion::new(1, 1)];

    fn connected(&mut self, _: Duration, _: Versions) {
        self.guest = Guest::Unknown;
        self.look.now();
        (self.purpose, self.owed, self.clean_up) = (None, None, None);
        self.in_ring = false;
    }

    fn disconnected(&mut self, _: Duration) {
        let partial = self
            .copy
            .as_ref()
            .is_some_and(|copy| !matches!(copy.step, Step::Start));
        let error = ServiceError::NotOpen.into();
        self.finish(Err(FcopyFailure { error, partial }));
        self.look.stop();
        (self.purpose, self.owed, self.clean_up) = (None, None, None);
        self.in_ring = false;
    }

    /// A file that the guest has begun is removed there: the copy has an outcome when
    /// that is done.
    fn cancel(&mut self, ticket: Ticket) -> Cancelled {
        let named = self.copy.as_ref().is_some_and(|copy| copy.ticket == ticket);
        if named {
            self.abort(FcopyError::Cancelled);
        }
        Cancelled::Nothing
    }

    fn arrived(&mut self, transaction_id: u64) {
        self.daemon = if transaction_id == UIO_TRANSACTION {
            FcopyDaemon::Uio
        } else {
            FcopyDaemon::Driver
        };
    }

    fn deadline(&self) -> Option<Duration> {
        let stalled = self.copy.as_ref().and_then(|copy| copy.stalled_at);
        [stalled, self.look.deadline()].into_iter().flatten().min()
    }

    fn tick(&mut self, now: Duration) {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        if due(self.copy.as_ref().and_then(|copy| copy.stalled_at)) {
            self.abort(FcopyError::Stalled);
        }
        self.look.tick(now);
    }

    fn request(&mut self, now: Duration, _: Versions, body: &mut Vec<u8>) -> Option<Request> {
        if let Some(operation) = self.clean_up {
            emit_bare(operation, body);
            self.purpose = Some(Purpose::CleanUp(operation));
        } else if let Some(copy) = &self.copy {
            copy.emit(copy.operation()?, body);
            self.purpose = Some(Purpose::Copy);
        } else if self.look.is_due() {
            let target = match self.daemon {
                FcopyDaemon::Driver => Target::root(),
                FcopyDaemon::Uio => Target::nowhere(),
            };
            emit_start(&target, false, false, 0, body);
            self.purpose = Some(Purpose::Look);
        } else {
            return None;
        }
        Some(Request {
            deadline: Deadline::Guest(now.saturating_add(ANSWER_LIMIT)),
        })
    }

    fn sent(&mut self, _: Duration) {
        self.in_ring = true;
        match self.purpose {
            Some(Purpose::Copy) => {
                if let Some(copy) = &mut self.copy {
                    copy.sent();
                }
            }
            Some(Purpose::Look) => self.look.sent(),
            Some(Purpose::CleanUp(_)) => self.clean_up = None,
            None => {}
        }
    }

    fn answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        self.in_ring = false;
        match self.purpose.take().ok_or(BadAnswer)? {
            Purpose::Copy => match self.copy_answered(now, answer.status) {
                Next::GoOn => {}
                Next::Failed(failure) => self.finish(Err(failure)),
                Next::Copied => {
                    self.copied += 1;
                    let copy = self.copy.as_ref();
                    let (size, fragments) =
                        copy.map_or((0, 0), |copy| (copy.written, copy.fragments));
                    self.finish(Ok(Copied { size, fragments }));
                }
            },
            Purpose::Look => self.looked(now, answer.status),
            Purpose::CleanUp(Operation::Cancel) if !answer.status.is_ok() => {
                self.clean_up = Some(Operation::Complete);
            }
            Purpose::CleanUp(_) => {}
        }
        Ok(())
    }

    fn late(&mut self, now: Duration, answer: &Answer<'_>) {
        let ok = answer.status.is_ok();
        // A file that was created after all, or that is still open.
        self.clean_up = match self.owed.take() {
            Some(Operation::Start) if ok => Some(Operation::Cancel),
            Some(Operation::Write) => Some(Operation::Cancel),
            Some(Operation::Cancel) if !ok => Some(Operation::Complete),
            _ => None,
        };
        self.look.later(now);
    }

    fn failed(&mut self, now: Duration, error: ServiceError) {
        self.in_ring = false;
        let Some(purpose) = self.purpose.take() else {
            return;
        };
        let timed_out = error == ServiceError::Timeout;
        let operation = self.operation(purpose);
        self.owed = operation.filter(|_| timed_out);
        match purpose {
            Purpose::Copy => {
                let partial = operation != Some(Operation::Start) || timed_out;
                if !timed_out && self.copy.as_ref().is_some_and(Copy::is_created) {
                    self.clean_up = Some(Operation::Cancel);
                }
                let error = error.into();
                self.finish(Err(FcopyFailure { error, partial }));
            }
            Purpose::Look => {
                self.look.ended();
                self.look.later(now);
            }
            Purpose::CleanUp(_) => self.clean_up = None,
        }
    }

    fn resumed(&mut self, now: Duration, slept: Duration) {
        let stalled = self.copy.as_mut().and_then(|copy| copy.stalled_at.as_mut());
        if let Some(at) = stalled {
            // What began during the pause lost less.
            *at = moved(*at, now.saturating_add(PATIENCE), slept);
        }
        self.look.resumed(now, slept);
    }

    fn look(&mut self) -> Option<&mut Look> {
        Some(&mut self.look)
    }

    fn condition(&self, _: Duration) -> (ServiceState, String) {
        let state = match self.guest {
            Guest::NoDaemon => ServiceState::NoDaemon,
            Guest::NoLocale => ServiceState::Error,
            Guest::Unknown | Guest::Ready => ServiceState::Ready,
        };
        let detail = match (&self.copy, self.guest) {
            (_, Guest::NoLocale) => NO_LOCALE.to_string(),
            (Some(copy), _) => {
                let (written, size) = (copy.written, copy.file.size);
                format!("copying {}: {written} of {size} bytes", copy.file.target)
            }
            (None, Guest::NoDaemon) => "waiting for the guest's daemon".into(),
            (None, _) => format!("{} files copied", self.copied),
        };
        (state, detail)
    }
}

#[cfg(test)]
mod tests;
