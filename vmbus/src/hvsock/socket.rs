// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection.

use std::fmt;
use std::time::Duration;

use super::{LINGER, LOOK, MAX_DATA, OPEN_LIMIT, PARTING};
use crate::bus::OfferSpec;
use crate::host::{
    Batch, Channel, DeviceError, Flow, MAX_BATCH, Packet, SendError, StreamingDevice,
};
use crate::memory::GuestSlice;
use crate::ring::{IncomingPacket, PacketMeta};
use crate::wire::{
    ChannelFlags, Guid, PIPE_DATA, PIPE_HEADER_SIZE, PacketType, PipeHeader, TlConnectRequest,
    USER_DEFINED_SIZE,
};

/// Bytes that are copied for a stream at a time, if it does not take them from
/// where they are.
const COPIED: usize = 4096;

/// Pieces of guest memory that a stream is given at a time. As a rule a packet
/// lies in one, and one in a ring's length in two.
const MAX_PIECES: usize = MAX_BATCH;

/// Packets to the guest before other channels get their turn.
const PACKETS_PER_TURN: usize = 16;

/// Why a stream moved no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Not now: the host pokes the channel when it can again.
    #[error("it would block")]
    WouldBlock,
    /// Never again.
    #[error("the other end is gone")]
    Gone,
}

/// The host's end of a connection. No method may block. Dropping it closes it.
pub trait Stream: Send + 'static {
    /// The guest has accepted, or got, the connection.
    fn opened(&mut self) {}

    /// Nobody in the guest took the connection.
    fn refused(&mut self) {}

    /// Takes bytes from the guest and says how many, at least one.
    fn write(&mut self, data: &[u8]) -> Result<usize, StreamError>;

    /// The same for bytes in several pieces, of which none is empty, in the
    /// guest's memory: the guest can change them at any time. A system call can
    /// take them from there; by default they are copied for [`write`](Self::write).
    fn write_pieces(&mut self, pieces: &[GuestSlice<'_>]) -> Result<usize, StreamError> {
        let mut bytes = [0; COPIED];
        let mut taken = 0;
        for piece in pieces {
            let mut rest = Some(*piece);
            while let Some(from) = rest.filter(|rest| !rest.is_empty()) {
                let len = from.copy_to(&mut bytes);
                match self.write(bytes.get(..len).unwrap_or_default()) {
                    Ok(written) if written < len => return Ok(taken + written),
                    Ok(_) => taken += len,
                    Err(error) if taken == 0 => return Err(error),
                    Err(_) => return Ok(taken),
                }
                rest = from.skip(len);
            }
        }
        Ok(taken)
    }

    /// The guest sends nothing more.
    fn close_write(&mut self);

    /// Gives bytes for the guest and says how many; 0 is the end.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, StreamError>;

    /// After the end: is there nobody any more who could read?
    fn is_gone(&self) -> bool;
}

/// A connection as a device.
pub struct Socket {
    spec: OfferSpec,
    /// `None` once it has ended.
    stream: Option<Box<dyn Stream>>,
    /// When the offer is taken back unless the guest opens it.
    expires: Duration,
    /// When silence ends it.
    deadline: Option<Duration>,
    /// The stream takes nothing: when to look whether the guest has ended.
    look_at: Option<Duration>,
    /// Bytes of the packet at the ring's head that the stream has taken.
    taken: usize,
    /// The guest has sent FIN.
    guest_ended: bool,
    /// The stream has ended.
    host_ended: bool,
    /// The guest was told that.
    fin_sent: bool,
    /// The host's end takes nothing more: what the guest sends is dropped.
    deaf: bool,
    /// Where the guest was reading when that was last looked at.
    read_at: u32,
    /// There may be more to read from the stream.
    more: bool,
}

/// What a socket's offer says besides its GUIDs: who connects.
const INITIATED_BY_HOST: usize = 4;

impl Socket {
    /// For a guest's request.
    pub fn accepting(now: Duration, request: &TlConnectRequest, stream: Box<dyn Stream>) -> Self {
        Self::new(now, request.service, request.endpoint, false, stream)
    }

    /// To a service of the guest. `instance` must be random; its first 32 bits
    /// are what the guest sees as the peer's port.
    pub fn connecting(
        now: Duration,
        service: Guid,
        instance: Guid,
        stream: Box<dyn Stream>,
    ) -> Self {
        Self::new(now, service, instance, true, stream)
    }

    fn new(
        now: Duration,
        interface_type: Guid,
        instance: Guid,
        by_host: bool,
        stream: Box<dyn Stream>,
    ) -> Self {
        let mut user_defined = [0; USER_DEFINED_SIZE];
        if let Some(byte) = user_defined.get_mut(INITIATED_BY_HOST) {
            *byte = by_host.into();
        }
        Self {
            spec: OfferSpec {
                interface_type,
                instance,
                flags: ChannelFlags::ENUMERATE_DEVICE_INTERFACE
                    | ChannelFlags::NAMED_PIPE_MODE
                    | ChannelFlags::TLNPI_PROVIDER_OFFER,
                user_defined,
                session_only: true,
            },
            stream: Some(stream),
            expires: now.saturating_add(OPEN_LIMIT),
            deadline: None,
            look_at: None,
            taken: 0,
            guest_ended: false,
            host_ended: false,
            fin_sent: false,
            deaf: false,
            read_at: 0,
            more: false,
        }
    }

    /// Whether the guest has read since it was last asked for.
    fn has_read(&mut self, channel: &Channel<'_>) -> bool {
        let before = std::mem::replace(&mut self.read_at, channel.read_position());
        before != self.read_at
    }

    /// Sees whether the silence goes on after the guest has ended, or the host's
    /// end is gone. What the guest does not read breaks no silence: it may have
    /// closed its socket, which looks the same.
    fn watch_silence(&mut self, now: Duration, channel: &mut Channel<'_>) {
        if self.has_read(channel) {
            self.deadline = None;
        }
        let gone = self.stream.as_ref().is_some_and(|stream| stream.is_gone());
        if (self.guest_ended || gone) && self.deadline.is_none() {
            let limit = if self.fin_sent { PARTING } else { LINGER };
            self.deadline = Some(now.saturating_add(limit));
        }
    }

    /// Ends the connection if there is nothing left to do.
    fn check_end(&mut self) {
        if self.fin_sent && (self.guest_ended || self.deaf) {
            self.stream = None;
        }
    }

    /// Moves what the stream gives into the ring, as far as there is room.
    fn pump(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError> {
        self.more = false;
        self.watch_silence(now, channel);
        let mut buffer = channel.take_buffer();
        let pumped = self.pump_with(now, channel, &mut buffer);
        channel.return_buffer(buffer);
        pumped
    }

    fn pump_with(
        &mut self,
        now: Duration,
        channel: &mut Channel<'_>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), SendError> {
        let chunk = chunk_of(channel.max_payload());
        if buffer.len() < chunk {
            buffer.resize(chunk, 0);
        }
        let buffer = buffer.get_mut(..chunk).unwrap_or_default();
        for _ in 0..PACKETS_PER_TURN {
            let Some(stream) = self.stream.as_mut().filter(|_| !self.host_ended) else {
                return self.send_fin(now, channel);
            };
            // Only what fits is read, so that nothing has to be kept.
            if !channel.has_room(PIPE_HEADER_SIZE + chunk)? {
                return Ok(());
            }
            match stream.read(buffer) {
                Ok(0) | Err(StreamError::Gone) => self.host_ended = true,
                Ok(len) => {
                    let data = buffer.get(..len).unwrap_or_default();
                    // At most MAX_DATA.
                    let size = u32::try_from(data.len()).unwrap_or(0);
                    let header = PipeHeader::data(size).to_bytes();
                    channel.send(PacketMeta::in_band(0), &[&header, data])?;
                }
                Err(StreamError::WouldBlock) => return Ok(()),
            }
        }
        self.more = true;
        Ok(())
    }

    /// Gives the data of the packets from `first` on to the stream in one call,
    /// from where it is. Says how many of them it has taken whole; `None` if the
    /// first has no data for it.
    fn write_run(&mut self, batch: &Batch<'_>, first: usize) -> Option<Result<usize, StreamError>> {
        let ended = self.deaf || self.guest_ended;
        let stream = self.stream.as_mut().filter(|_| !ended)?;
        let mut pieces = [GuestSlice::EMPTY; MAX_PIECES];
        let mut lens = [0; MAX_PIECES];
        let (mut used, mut count) = (0, 0);
        for (packet, len) in batch.packets_from(first).zip(&mut lens) {
            let skipped = if count == 0 { self.taken } else { 0 };
            let rest = data_len(&packet).and_then(|len| len.checked_sub(skipped));
            let Some(rest) = rest.filter(|rest| *rest != 0) else {
                break;
            };
            let room = pieces.get_mut(used..).filter(|room| !room.is_empty());
            let Some(room) = room else { break };
            let data = packet.payload.pieces(PIPE_HEADER_SIZE + skipped, rest);
            for (to, piece) in room.iter_mut().zip(data) {
                *to = piece;
                used += 1;
            }
            *len = rest;
            count += 1;
        }
        let pieces = pieces.get(..used).filter(|pieces| !pieces.is_empty())?;
        let mut written = match stream.write_pieces(pieces) {
            Ok(written) => written,
            Err(error) => return Some(Err(error)),
        };
        (self.deadline, self.look_at) = (None, None);
        let mut done = 0;
        for len in lens.iter().take(count) {
            match written.checked_sub(*len) {
                Some(rest) => written = rest,
                None => break,
            }
            (done, self.taken) = (done + 1, 0);
        }
        self.taken += written.min(MAX_DATA);
        Some(Ok(done))
    }

    fn send_fin(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError> {
        if let Some(stream) = self.stream.as_ref().filter(|_| !self.fin_sent) {
            let header = PipeHeader::data(0).to_bytes();
            match channel.send(PacketMeta::in_band(0), &[&header]) {
                Ok(()) => {
                    self.fin_sent = true;
                    if stream.is_gone() {
                        self.deadline = Some(now.saturating_add(PARTING));
                    }
                }
                Err(SendError::Full) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.check_end();
        Ok(())
    }

    /// Takes a packet that was copied.
    fn packet(&mut self, now: Duration, packet: &Packet<'_>) -> Result<Flow, DeviceError> {
        let data = data_of(packet).filter(|_| !self.guest_ended);
        let data = data.ok_or(DeviceError)?;
        let Some(stream) = &mut self.stream else {
            // The end is on its way to the guest.
            return Ok(Flow::Done);
        };
        if data.is_empty() {
            self.guest_ended = true;
            stream.close_write();
            self.deadline = Some(now.saturating_add(LINGER));
            self.check_end();
            return Ok(Flow::Done);
        }
        // The guest may have changed the packet since it was shown last.
        while let Some(rest) = data.get(self.taken..).filter(|rest| !rest.is_empty()) {
            if self.deaf {
                break;
            }
            match stream.write(rest) {
                Ok(len) => {
                    self.taken += len;
                    (self.deadline, self.look_at) = (None, None);
                }
                Err(StreamError::WouldBlock) => return Ok(Flow::Later),
                Err(StreamError::Gone) => {
                    // What it has sent before still goes to the guest.
                    self.deaf = true;
                    self.more = true;
                }
            }
        }
        self.taken = 0;
        Ok(Flow::Done)
    }
}

/// What a packet carries, if it is one of a socket's.
fn data_of<'a>(packet: &Packet<'a>) -> Option<&'a [u8]> {
    let (header, data) = PipeHeader::parse(packet.payload)?;
    is_data(packet.packet_type, header).then_some(data)
}

/// How much a packet carries that is still in the ring, likewise.
fn data_len(packet: &IncomingPacket<'_>) -> Option<usize> {
    let header = PipeHeader::from_bytes(packet.payload.first_word()?);
    let most = packet.payload.len() - PIPE_HEADER_SIZE;
    let len = usize::try_from(header.size).ok()?;
    (is_data(packet.packet_type, header) && len <= most).then_some(len)
}

fn is_data(packet_type: PacketType, header: PipeHeader) -> bool {
    let fits = usize::try_from(header.size).is_ok_and(|size| size <= MAX_DATA);
    packet_type == PacketType::IN_BAND && header.flags == PIPE_DATA && fits
}

/// Data bytes per packet: two packets fill a small ring, and no packet is larger
/// than the guest accepts. A multiple of 8, so nothing is padded.
fn chunk_of(max_payload: usize) -> usize {
    let half = (max_payload / 2).saturating_sub(64) & !7;
    half.clamp(8, MAX_DATA)
}

impl StreamingDevice for Socket {
    fn offer(&self) -> OfferSpec {
        self.spec
    }

    fn opened(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError> {
        if let Some(stream) = &mut self.stream {
            stream.opened();
        }
        self.pump(now, channel)
    }

    fn packets(
        &mut self,
        now: Duration,
        _: &mut Channel<'_>,
        batch: &mut Batch<'_>,
    ) -> Result<usize, DeviceError> {
        let mut done = 0;
        while done < batch.len() {
            match self.write_run(batch, done) {
                Some(Ok(taken)) => {
                    done += taken;
                    continue;
                }
                Some(Err(StreamError::WouldBlock)) => break,
                // What is no data, or has nobody to go to, is seen to one by one.
                Some(Err(StreamError::Gone)) | None => {}
            }
            if self.deaf && !self.guest_ended {
                let dropped = batch.packets_from(done).next();
                if dropped
                    .and_then(|packet| data_len(&packet))
                    .is_some_and(|len| len > 0)
                {
                    (done, self.taken) = (done + 1, 0);
                    continue;
                }
            }
            let Some(packet) = batch.copied(done) else {
                break;
            };
            match self.packet(now, &packet)? {
                Flow::Done => done += 1,
                Flow::Later => break,
            }
        }
        Ok(done)
    }

    fn stalled(&mut self, now: Duration, last: Option<[u8; 8]>) {
        // It is also offered again what it did not take: a reader that is slow need
        // not be told of as one that could be written to.
        self.look_at = Some(now.saturating_add(LOOK));
        if last == Some(PipeHeader::data(0).to_bytes()) {
            self.deadline.get_or_insert(now.saturating_add(LINGER));
        }
    }

    fn poll(&mut self, now: Duration, channel: &mut Channel<'_>) -> Result<(), SendError> {
        if self.deadline.is_some_and(|at| at <= now) {
            self.deadline = None;
            if !self.has_read(channel) {
                self.stream = None;
                return Ok(());
            }
        }
        if self.look_at.is_some_and(|at| at <= now) {
            // Set again if the packet is put off again, which is seen at once.
            self.look_at = None;
        }
        self.pump(now, channel)
    }

    fn deadline(&self) -> Option<Duration> {
        if self.more {
            Some(Duration::ZERO)
        } else {
            [self.deadline, self.look_at].into_iter().flatten().min()
        }
    }

    fn open_deadline(&self) -> Option<Duration> {
        self.stream.as_ref().map(|_| self.expires)
    }

    fn not_opened(&mut self, _: Duration) {
        if let Some(mut stream) = self.stream.take() {
            stream.refused();
        }
    }

    fn is_finished(&self) -> bool {
        self.stream.is_none()
    }

    fn closed(&mut self, _: Duration) {
        self.stream = None;
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("service", &self.spec.interface_type)
            .field("instance", &self.spec.instance)
            .field("guest_ended", &self.guest_ended)
            .field("host_ended", &self.host_ended)
            .finish_non_exhaustive()
    }
}
