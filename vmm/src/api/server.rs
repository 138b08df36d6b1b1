// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The API thread: an epoll loop over its clients' connections.
//!
//! ```text
//!  Reading ── whole request ──► Waiting ── reply ──► Reading, or closed
//!     ├────── GET /v1/events, /v1/trace ─► Streaming
//!     └────── POST /v1/files ─► Uploading ── all sent ──► Waiting
//! ```
//!
//! A client has at most one request in work. What it sends meanwhile stays in
//! its socket.

mod client;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::data;
use super::http::{self, Parsed, Request};
use super::pipe::Pipe;
use super::routes::{Op, Route, Stream, route};
use super::types::{Answer, ApiError};
use super::{Call, CallSender, Reply};
use crate::events::{EventHub, EventLines};
use crate::feed::FeedEnd;
use crate::sandbox::{self, Kind};
use crate::trace::Trace;
use client::{Client, Gone, State, Upload};
pub use client::{MAX_ANSWER, MAX_OUTPUT};

/// Connections at once. When all are taken, one that has asked for nothing goes.
const MAX_CLIENTS: usize = 64;
/// Clients that follow events or the trace: they stay, so they may not take all places.
const MAX_STREAMS: usize = 32;
/// A request has to arrive as a whole within this time, and a client that asks
/// for nothing is let go after it.
const PATIENCE: Duration = Duration::from_secs(60);
const LISTENER: u64 = 0;
const STOP: u64 = 1;
const REPLIES: u64 = 2;
const EVENTS: u64 = 3;
const TRACE: u64 = 4;
const FIRST_CLIENT: u64 = 16;

/// A running API thread.
pub struct ApiServer {
    stop: EventFd,
    handle: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves `listener`; operations go to `calls`.
    pub fn start(
        listener: UnixListener,
        calls: CallSender,
        hub: &EventHub,
        trace: &Trace,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = eventfd()?;
        let bell = Arc::new(eventfd()?);
        let events = hub.subscribe()?;
        let traced = trace.subscribe()?;
        let epoll = Epoll::new()?;
        for (fd, token) in [
            (listener.as_raw_fd(), LISTENER),
            (stop.as_raw_fd(), STOP),
            (bell.as_raw_fd(), REPLIES),
            (events.new.bell.as_raw_fd(), EVENTS),
            (traced.bell.as_raw_fd(), TRACE),
        ] {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )?;
        }
        let (sender, replies) = unbounded();
        let server = Server {
            listener,
            calls,
            events,
            trace: trace.clone(),
            traced,
            epoll,
            sender,
            replies,
            bell,
            clients: BTreeMap::new(),
            next: FIRST_CLIENT,
        };
        let handle = sandbox::spawn(Kind::Api, "api".into(), move || server.run())?;
        Ok(Self {
            stop,
            handle: Some(handle),
        })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(Err(_)) = self.handle.take().map(JoinHandle::join) {
            log::error!("the API thread panicked");
        }
    }
}

struct Server {
    listener: UnixListener,
    calls: CallSender,
    events: EventLines,
    trace: Trace,
    traced: FeedEnd,
    epoll: Epoll,
    sender: Sender<(u64, Answer)>,
    replies: Receiver<(u64, Answer)>,
    bell: Arc<EventFd>,
    clients: BTreeMap<u64, Client>,
    next: u64,
}

impl Server {
    fn run(mut self) {
        let mut ready = [EpollEvent::default(); 32];
        loop {
            let timeout = if self.clients.is_empty() { -1 } else { 5000 };
            let count = match self.epoll.wait(timeout, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("API: {error}; no more requests are served");
                    return;
                }
            };
            for event in ready.iter().take(count) {
                match event.data() {
                    LISTENER => self.accept(),
                    STOP => return self.finish(),
                    REPLIES => self.take_replies(),
                    EVENTS => self.take_lines(Stream::Events),
                    TRACE => self.take_lines(Stream::Trace),
                    id => self.client(id, event.event_set()),
                }
            }
            self.expire();
        }
    }

    fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, most likely: a client less helps.
                    log::warn!("API: a client could not be accepted: {error}");
                    if !self.evict() {
                        thread::sleep(Duration::from_millis(10));
                    }
                    return;
                }
            };
            if self.clients.len() >= MAX_CLIENTS && !self.evict() {
                log::debug!("API: all {MAX_CLIENTS} connections are in use");
                continue;
            }
            if let Err(error) = self.add(stream) {
                log::warn!("API: a client could not be served: {error}");
            }
        }
    }

    fn add(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let id = self.next;
        self.next = self.next.wrapping_add(1).max(FIRST_CLIENT);
        let watched = EventSet::IN;
        self.epoll.ctl(
            ControlOperation::Add,
            stream.as_raw_fd(),
            EpollEvent::new(watched, id),
        )?;
        self.clients.insert(id, Client::new(stream, watched));
        Ok(())
    }

    /// Lets go the client that has asked for nothing for the longest time.
    fn evict(&mut self) -> bool {
        let reading = self
            .clients
            .iter()
            .filter(|(_, c)| c.state == State::Reading);
        let Some((id, _)) = reading.min_by_key(|(_, client)| client.idle_since) else {
            return false;
        };
        let id = *id;
        // Closing the descriptor takes it out of epoll.
        self.clients.remove(&id).is_some()
    }

    fn expire(&mut self) {
        let now = Instant::now();
        self.clients.retain(|_, client| {
            let waits = matches!(client.state, State::Reading | State::Closing);
            !waits || now.saturating_duration_since(client.idle_since) < PATIENCE
        });
    }

    fn client(&mut self, id: u64, events: EventSet) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let mut result = Ok(());
        if matches!(client.state, State::Uploading(_)) && events.contains(EventSet::IN) {
            result = client.pass_on();
        } else if client.state == State::Reading && events.contains(EventSet::IN) {
            result = client.read();
        } else if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            // Both directions are closed: nobody waits for the answer.
            result = Err(Gone);
        }
        if result.is_ok() && events.contains(EventSet::OUT) {
            result = client.write();
        }
        self.settle(id, result);
    }

    /// Serves what a client has sent, if it is whole, and updates what is waited for.
    fn settle(&mut self, id: u64, mut result: Result<(), Gone>) {
        if result.is_ok() {
            result = self.serve(id);
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let done = client.state == State::Closing && client.output.is_empty();
        if result.is_err() || done || client.watch(&self.epoll, id).is_err() {
            self.clients.remove(&id);
        }
    }

    fn serve(&mut self, id: u64) -> Result<(), Gone> {
        while let Some(client) = self.clients.get_mut(&id) {
            // A client that does not read its answers gets no more of them.
            if client.state != State::Reading || !client.output.is_empty() {
                break;
            }
            match http::parse(&client.input) {
                Ok(Parsed::Partial(expects)) => {
                    if expects && !client.continued {
                        client.continued = true;
                        client.output.extend_from_slice(http::CONTINUE);
                        client.write()?;
                    }
                    break;
                }
                Ok(Parsed::Whole(request, used)) => {
                    client.input.drain(..used);
                    client.continued = false;
                    self.request(id, &request)?;
                }
                Ok(Parsed::Head {
                    request,
                    used,
                    length,
                    expects,
                }) => {
                    client.input.drain(..used);
                    let pipe = Pipe::new(length, Arc::clone(&self.bell));
                    match data::upload(&request.target, pipe.clone()) {
                        Ok(file) => {
                            client.state = State::Uploading(request.keep_alive);
                            client.upload = Some(Upload {
                                pipe,
                                left: length,
                                expects,
                            });
                            let reply = Reply::new(id, self.sender.clone(), Arc::clone(&self.bell));
                            client.waiting = Some(reply.waiter().guard());
                            let op = Op::Copy(file);
                            self.calls.send(Call { op, reply });
                        }
                        // Its body is still to come, and nobody reads it.
                        Err(error) => client.answer(Err(error), false)?,
                    }
                }
                Err(error) => {
                    let message = error.to_string();
                    let answer = ApiError::new(error.status(), "bad-request", "api", message);
                    client.state = State::Closing;
                    client.input.clear();
                    client.answer(Err(answer), false)?;
                }
            }
        }
        Ok(())
    }

    fn request(&mut self, id: u64, request: &Request) -> Result<(), Gone> {
        let route = route(request);
        if let Ok(Route::Past(_) | Route::Stream(Stream::Events, _)) = route {
            // What others are still to get is in the backlog that this one gets.
            self.take_lines(Stream::Events);
        }
        let streams = self.clients.values();
        let streams = streams
            .filter(|client| matches!(client.state, State::Streaming(_)))
            .count();
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        match route {
            Ok(Route::Stream(..)) if streams >= MAX_STREAMS => {
                let message = format!("{MAX_STREAMS} clients follow something already");
                let error = ApiError::new(503, "busy", "api", message);
                client.answer(Err(error), request.keep_alive)
            }
            Ok(Route::Op(op)) => {
                client.state = State::Waiting(request.keep_alive);
                let reply = Reply::new(id, self.sender.clone(), Arc::clone(&self.bell));
                client.waiting = Some(reply.waiter().guard());
                self.calls.send(Call { op, reply });
                Ok(())
            }
            Ok(Route::Stream(stream, lines)) => {
                let (past, watcher) = match stream {
                    Stream::Events => (self.events.backlog(), self.events.follow()),
                    Stream::Trace => (Vec::new(), self.trace.audience().join()),
                };
                client.follow(stream, lines, watcher);
                client.feed(&past)
            }
            Ok(Route::Past(lines)) => {
                let keep_alive = request.keep_alive;
                let most = lines.map_or(usize::MAX, |most| most.try_into().unwrap_or(usize::MAX));
                let past = self.events.backlog();
                let past = past.split_inclusive(|byte| *byte == b'\n').take(most);
                let past: Vec<u8> = past.flatten().copied().collect();
                client.finish_answer(http::lines(&past, keep_alive), keep_alive)
            }
            // No method here is HEAD: an answer to it has a head and no body, which
            // such a client would take for the next answer's.
            Err(error) if request.method == "HEAD" => client.refuse_head(error),
            Err(error) => client.answer(Err(error), request.keep_alive),
        }
    }

    fn take_replies(&mut self) {
        let _ = self.bell.read();
        while let Ok((id, answer)) = self.replies.try_recv() {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            let keep_alive = match client.state {
                State::Waiting(keep_alive) => keep_alive,
                // The rest of the body is not read any more.
                State::Uploading(_) => false,
                _ => continue,
            };
            client.upload = None;
            let waiting = client.waiting.take();
            let result = client.answer(answer, keep_alive);
            // One that has hung up meanwhile has not got it.
            if let (Ok(()), Some(waiting)) = (&result, waiting) {
                waiting.answered();
            }
            self.settle(id, result);
        }
        // The guest may take data now, or more of it.
        let uploading = self.clients.iter();
        let uploading: Vec<u64> = uploading
            .filter(|(_, client)| matches!(client.state, State::Uploading(_)))
            .map(|(id, _)| *id)
            .collect();
        for id in uploading {
            if let Some(client) = self.clients.get_mut(&id) {
                let result = client.pass_on();
                self.settle(id, result);
            }
        }
    }

    fn take_lines(&mut self, stream: Stream) {
        let lines = match stream {
            Stream::Events => self.events.new.take(),
            Stream::Trace => self.traced.take(),
        };
        let following = self.clients.iter();
        let following: Vec<u64> = following
            .filter(|(_, client)| client.state == State::Streaming(stream))
            .map(|(id, _)| *id)
            .collect();
        for id in following {
            if let Some(client) = self.clients.get_mut(&id) {
                let result = client.feed(&lines);
                self.settle(id, result);
            }
        }
    }

    /// The end of the process: answers that are ready still go out.
    fn finish(mut self) {
        self.take_replies();
        self.take_lines(Stream::Events);
        self.take_lines(Stream::Trace);
        for client in self.clients.values_mut() {
            let _ = client.write();
        }
    }
}

fn eventfd() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

#[cfg(test)]
mod tests;
