// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! COM1: a 16550A that costs the guest no waiting.
//!
//! ```text
//!  vCPU ──OUT──► UART ──► queue ──► console thread ──► stdout, a file
//!  vCPU ◄──IN─── UART ◄── offer() ◄── event loop ◄── stdin
//!                  └─ irqfd on GSI 4
//! ```
//!
//! Output goes through a bounded queue to a thread of its own: a terminal that
//! has stopped reading holds up the vCPU that writes, once the queue is full,
//! and nothing else. Input is interrupt-driven: what does not fit into the
//! UART's FIFO stays with the event loop until the guest has read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::output::{Output, Queue};

/// First port of COM1.
pub const BASE: u16 = 0x3F8;
/// How many ports it has.
pub const LENGTH: u8 = 8;
/// Its interrupt.
pub const GSI: u32 = 4;

/// Raises the UART's interrupt.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the event loop that the guest has read all input, if the loop has more.
/// A guest may read an empty UART as often as it likes; that wakes nobody.
struct Drained {
    bell: EventFd,
    /// The FIFO did not take all that it was offered. Changes under the UART's lock.
    more: Arc<AtomicBool>,
}

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if self.more.swap(false, Ordering::Relaxed) {
            // A full counter is a pending wake-up already.
            let _ = self.bell.write(1);
        }
    }
}

/// The serial port.
pub struct Com1 {
    uart: Mutex<Serial<Irq, Drained, Queue>>,
    more: Arc<AtomicBool>,
    queue: Queue,
}

impl Com1 {
    /// A port that interrupts by `irq`, signals `drained` when its input FIFO has
    /// been emptied after it did not take all input, and writes to `output`.
    pub fn new(irq: EventFd, drained: EventFd, output: &Output) -> Self {
        let queue = output.queue();
        // The machine before may have been stopped in the middle of its output.
        queue.let_through(false);
        let more = Arc::new(AtomicBool::new(false));
        let drained = Drained {
            bell: drained,
            more: Arc::clone(&more),
        };
        Self {
            uart: Mutex::new(Serial::with_events(Irq(irq), drained, queue.clone())),
            more,
            queue,
        }
    }

    /// Which register a port is, if it is one of this device's.
    pub fn register(&self, port: u16) -> Option<u8> {
        let offset = u8::try_from(port.checked_sub(BASE)?).ok()?;
        (offset < LENGTH).then_some(offset)
    }

    /// The guest reads a register.
    pub fn read(&self, register: u8) -> u8 {
        self.uart.lock().read(register)
    }

    /// The guest writes a register.
    pub fn write(&self, register: u8, value: u8) {
        // Waiting is done without the UART's lock, so that input and reset go on.
        self.queue.wait_for_room();
        if let Err(error) = self.uart.lock().write(register, value) {
            log::debug!("COM1: {error:?}");
        }
    }

    /// While set, output beyond the limit does not make a vCPU wait: one that is
    /// to stop or to pause must not depend on a reader.
    pub fn let_writers_through(&self, through: bool) {
        self.queue.let_through(through);
    }

    /// Offers input; returns how many bytes the FIFO took. The rest is to be offered
    /// again when `drained` is signalled.
    pub fn offer(&self, input: &[u8]) -> usize {
        let mut uart = self.uart.lock();
        let taken = uart.enqueue_raw_bytes(input).unwrap_or(0);
        self.more.store(taken < input.len(), Ordering::Relaxed);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::QUEUE_LIMIT;
    use std::io::Write;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    struct Channel(mpsc::SyncSender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let closed = |_| io::ErrorKind::BrokenPipe.into();
            self.0
                .send(bytes.to_vec())
                .map_err(closed)
                .map(|()| bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn eventfd() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK).unwrap()
    }

    fn port(bound: usize) -> (Com1, Output, mpsc::Receiver<Vec<u8>>) {
        let (sender, receiver) = mpsc::sync_channel(bound);
        let output = Output::start("test", Box::new(Channel(sender))).unwrap();
        (Com1::new(eventfd(), eventfd(), &output), output, receiver)
    }

    #[test]
    fn what_the_guest_writes_comes_out_in_order_and_whole() {
        let (com1, output, receiver) = port(1000);
        let text: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for byte in &text {
            com1.write(0, *byte);
        }
        drop(output);
        assert_eq!(receiver.iter().flatten().collect::<Vec<u8>>(), text);
    }

    #[test]
    fn a_reader_that_stops_stops_only_the_writing_vcpu() {
        let (com1, output, receiver) = port(0);
        let com1 = Arc::new(com1);
        let writer = Arc::clone(&com1);
        let vcpu = thread::spawn(move || {
            for _ in 0..QUEUE_LIMIT * 3 {
                writer.write(0, b'x');
            }
        });
        thread::sleep(Duration::from_millis(100));
        assert!(!vcpu.is_finished());
        // Another vCPU reads registers, and input still arrives.
        assert_eq!(com1.read(5) & 0x20, 0x20);
        assert_eq!(com1.offer(b"hello"), 5);
        let mut got = 0;
        while got < QUEUE_LIMIT * 3 {
            got += receiver.recv().unwrap().len();
        }
        vcpu.join().unwrap();
        drop(output);
    }

    #[test]
    fn a_vcpu_that_is_to_stop_does_not_wait_for_a_reader() {
        let (com1, output, receiver) = port(0);
        let com1 = Arc::new(com1);
        com1.let_writers_through(true);
        for _ in 0..QUEUE_LIMIT * 2 {
            com1.write(0, b'x');
        }
        drop(receiver);
        drop(output);
    }

    #[test]
    fn a_new_machines_vcpus_wait_for_the_reader_again() {
        let (com1, output, receiver) = port(0);
        com1.let_writers_through(true);
        let again = Arc::new(Com1::new(eventfd(), eventfd(), &output));
        let writer = Arc::clone(&again);
        let vcpu = thread::spawn(move || {
            for _ in 0..QUEUE_LIMIT * 3 {
                writer.write(0, b'x');
            }
        });
        thread::sleep(Duration::from_millis(100));
        assert!(!vcpu.is_finished());
        again.let_writers_through(true);
        vcpu.join().unwrap();
        drop(receiver);
    }

    #[test]
    fn input_beyond_the_fifo_is_not_taken_until_the_guest_has_read() {
        let (com1, _output, _receiver) = port(0);
        let input = [b'i'; 100];
        let taken = com1.offer(&input);
        assert_eq!(taken, 64);
        assert_eq!(com1.offer(&input), 0);
        for _ in 0..64 {
            assert_eq!(com1.read(0), b'i');
        }
        assert_eq!(com1.offer(&input[taken..]), 36);
    }

    #[test]
    fn the_loop_is_woken_only_for_input_that_waits() {
        let output = Output::start("test", Box::new(io::sink())).unwrap();
        let drained = eventfd();
        let com1 = Com1::new(eventfd(), drained.try_clone().unwrap(), &output);
        let wakes = || drained.read().unwrap_or(0);
        let read = |count| (0..count).map(|_| com1.read(0)).for_each(|_| ());
        // What one `rep insb` does: nothing has been typed.
        read(4096);
        assert_eq!(wakes(), 0);
        assert_eq!(com1.offer(b"short"), 5);
        read(4096);
        assert_eq!(wakes(), 0, "all of it was taken");
        // More than fits: one wake-up, once all that fitted has been read.
        assert_eq!(com1.offer(&[b'i'; 100]), 64);
        read(63);
        assert_eq!(wakes(), 0);
        read(4096);
        assert_eq!(wakes(), 1);
        assert_eq!(com1.offer(&[b'i'; 36]), 36);
        read(4096);
        assert_eq!(wakes(), 0);
    }

    #[test]
    fn a_sink_that_fails_does_not_hold_up_the_guest() {
        let (com1, output, receiver) = port(0);
        drop(receiver);
        for _ in 0..QUEUE_LIMIT * 3 {
            com1.write(0, b'x');
        }
        drop(output);
    }
}
