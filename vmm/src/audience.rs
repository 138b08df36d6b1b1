// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who watches something that the bus thread does for watchers only. It is woken
//! when somebody begins to, or stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

/// Those who watch. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Audience(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: AtomicUsize,
    /// The bus's.
    bell: Mutex<Option<Arc<EventFd>>>,
}

/// Somebody watches as long as this is kept.
#[derive(Debug)]
pub struct Watcher(Audience);

impl Audience {
    /// The bus to wake.
    pub fn set_bell(&self, bell: Arc<EventFd>) {
        *self.0.bell.lock() = Some(bell);
    }

    /// Somebody watches from now on.
    pub fn join(&self) -> Watcher {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.wake();
        Watcher(self.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        if let Some(bell) = &*self.0.bell.lock() {
            let _ = bell.write(1);
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_woken_by_who_comes_and_who_goes() {
        let audience = Audience::default();
        let before = audience.join();
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        audience.set_bell(Arc::clone(&bell));
        assert!(bell.read().is_err());
        let other = audience.join();
        assert_eq!((audience.count(), bell.read().unwrap()), (2, 1));
        drop(other);
        drop(before);
        assert_eq!((audience.count(), bell.read().unwrap()), (0, 2));
    }
}
