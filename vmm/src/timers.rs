// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread of the synthetic timers of `--synic user`: it sleeps until one
//! expires, and interrupts the guest. It touches no device and waits for nobody, so
//! a timer is never late for something that the bus does.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::sandbox::{self, Kind};
use vmbus_kvm::Hyperv;

/// The token of the eventfd that ends the thread; a VP's is its number.
const STOP: u64 = u64::MAX;

/// The running thread.
pub struct TimerThread {
    thread: JoinHandle<()>,
    stop: EventFd,
}

impl TimerThread {
    /// Starts it, if there are timers that need it.
    pub fn start(hyperv: &Arc<Hyperv>) -> io::Result<Option<Self>> {
        let epoll = Epoll::new()?;
        let mut any = false;
        for (vp, alarm) in (0..).zip(hyperv.alarms()) {
            let edges = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, vp);
            epoll.ctl(ControlOperation::Add, alarm, edges)?;
            any = true;
        }
        if !any {
            return Ok(None);
        }
        let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let event = EpollEvent::new(EventSet::IN, STOP);
        epoll.ctl(ControlOperation::Add, stop.as_raw_fd(), event)?;
        let hyperv = Arc::clone(hyperv);
        let thread = sandbox::spawn(Kind::Timers, "timers".into(), move || {
            if let Err(error) = run(&epoll, &hyperv) {
                log::error!("the guest's timers stand still: {error}");
            }
        })?;
        Ok(Some(Self { thread, stop }))
    }

    /// Ends it and waits for it.
    pub fn stop(self) -> std::thread::Result<()> {
        let _ = self.stop.write(1);
        self.thread.join()
    }
}

fn run(epoll: &Epoll, hyperv: &Hyperv) -> io::Result<()> {
    let mut ready = [EpollEvent::default(); 16];
    loop {
        let count = match epoll.wait(-1, &mut ready) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for event in ready.iter().take(count) {
            match u32::try_from(event.data()) {
                Ok(vp) => hyperv.timer_rings(vp),
                Err(_) => return Ok(()),
            }
        }
    }
}
