// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sequences of control messages, signals and host calls against the whole bus.

use std::fmt::Write;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use vmbus::bus::EVENT_CONNECTION_BASE;
use vmbus::gpadl::{MAX_GPADLS, MAX_PAGES};
use vmbus::host::{Device, ECHO_INSTANCE, EchoDevice, Host, TraceEvent, Tracer};
use vmbus::mock::{MockGuest, gpadl_messages};
use vmbus::wire::{
    ContactTarget, Describe, GpadlId, GuestMessage, Guid, HostMessage, InitiateContact,
    ModifyChannel, OpenChannel, ProtocolVersion, Relid, TlConnectRequest, VpIndex,
};

use crate::guest::{Guest, PAGE, forget_what_was_reached, wipe};
use crate::step::{Step, array, blob, steps, write_blob};

/// Something that the guest or the host does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Bytes on a message connection.
    Post(u8, Vec<u8>),
    /// Contact with a minor version of 5 (or an older one), from a processor.
    Contact(u8, u8),
    /// REQUESTOFFERS.
    RequestOffers,
    /// A page list: channel, number, first page, how many.
    Gpadl(u8, u8, u8, u8),
    /// Only the header of a list of 255 pages: channel, number.
    GpadlHeader(u8, u8),
    /// GPADL_TEARDOWN: channel, number.
    Teardown(u8, u8),
    /// OPENCHANNEL: channel, list, pages of the first ring, processor.
    Open(u8, u8, u8, u8),
    /// CLOSECHANNEL.
    Close(u8),
    /// RELID_RELEASED.
    Released(u8),
    /// MODIFYCHANNEL: channel, processor.
    Modify(u8, u8),
    /// TL_CONNECT_REQUEST with an endpoint.
    Connect(u8),
    /// UNLOAD.
    Unload,
    /// HvSignalEvent: channel, flag.
    Signal(u8, u8),
    /// The guest writes bytes: page of the rings, 8-byte word in it.
    Write(u8, u8, Vec<u8>),
    /// The host offers an echo device.
    Offer(u8),
    /// The host rescinds.
    Rescind(u8),
    /// The host is reset.
    Reset,
    /// The guest stops reading its messages, or starts again.
    Deaf(bool),
    /// Time passes.
    Advance(u8),
}

/// Where page lists begin.
const FIRST: u64 = 2048;
/// Every other list is made of so few pages, some of them several times.
const FEW: u64 = 16;

impl Step for Control {
    fn read(input: &mut Unstructured<'_>) -> Result<Self> {
        let [op] = array(input)?;
        let mut one = || array::<1>(input).map(|[a]| a);
        Ok(match op % 19 {
            0 => Self::Post(one()?, blob(input)?),
            1 => Self::Contact(one()?, one()?),
            2 => Self::RequestOffers,
            3 => Self::Gpadl(one()?, one()?, one()?, one()?),
            4 => Self::GpadlHeader(one()?, one()?),
            5 => Self::Teardown(one()?, one()?),
            6 => Self::Open(one()?, one()?, one()?, one()?),
            7 => Self::Close(one()?),
            8 => Self::Released(one()?),
            9 => Self::Modify(one()?, one()?),
            10 => Self::Connect(one()?),
            11 => Self::Unload,
            12 => Self::Signal(one()?, one()?),
            13 => Self::Write(one()?, one()?, blob(input)?),
            14 => Self::Offer(one()?),
            15 => Self::Rescind(one()?),
            16 => Self::Reset,
            17 => Self::Deaf(one()? & 1 != 0),
            _ => Self::Advance(one()?),
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Post(connection, bytes) => {
                out.extend([0, *connection]);
                write_blob(out, bytes);
            }
            Self::Contact(a, b) => out.extend([1, *a, *b]),
            Self::RequestOffers => out.push(2),
            Self::Gpadl(a, b, c, d) => out.extend([3, *a, *b, *c, *d]),
            Self::GpadlHeader(a, b) => out.extend([4, *a, *b]),
            Self::Teardown(a, b) => out.extend([5, *a, *b]),
            Self::Open(a, b, c, d) => out.extend([6, *a, *b, *c, *d]),
            Self::Close(a) => out.extend([7, *a]),
            Self::Released(a) => out.extend([8, *a]),
            Self::Modify(a, b) => out.extend([9, *a, *b]),
            Self::Connect(a) => out.extend([10, *a]),
            Self::Unload => out.push(11),
            Self::Signal(a, b) => out.extend([12, *a, *b]),
            Self::Write(a, b, bytes) => {
                out.extend([13, *a, *b]);
                write_blob(out, bytes);
            }
            Self::Offer(a) => out.extend([14, *a]),
            Self::Rescind(a) => out.extend([15, *a]),
            Self::Reset => out.push(16),
            Self::Deaf(deaf) => out.extend([17, u8::from(*deaf)]),
            Self::Advance(a) => out.extend([18, *a]),
        }
    }
}

/// Runs the steps in `data`; then the bus must serve an honest guest.
pub fn run(data: &[u8]) {
    let mut guest = Guest::new(2);
    // To describe all takes as long as all else.
    if data.len().is_multiple_of(4) {
        guest.with_host(|host, _| host.set_tracer(Some(Box::<Describer>::default())));
    }
    guest.offer(Box::new(EchoDevice::default()));
    forget_what_was_reached();
    let mut used = FEW;
    for step in steps(data) {
        perform(&mut guest, step, &mut used);
        while guest.recv().is_some() {}
        check(&guest);
    }
    guest.set_deaf(false);
    guest.post(&GuestMessage::Unload);
    while guest.recv().is_some() {}
    assert!(guest.host().session().is_none());
    let _ = guest.with_host(|host, now| host.offer(now, echo(0)));
    assert!(guest.connect(ProtocolVersion::V5_3));
    let offers = guest.request_offers();
    let mut channel = guest.open(offers[0].relid, 4).expect("it opens");
    assert!(guest.send(&mut channel, 1, b"are you well?"));
    assert!(guest.receive(&mut channel).is_some());
    wipe(&**guest.memory(), FIRST..FIRST + used);
}

/// Describes everything that passes, as a trace does.
#[derive(Default)]
struct Describer(String);

impl Tracer for Describer {
    fn trace(&mut self, _: Duration, event: TraceEvent<'_>) {
        self.0.clear();
        let described: Option<&dyn Describe> = match event {
            TraceEvent::GuestMessage(message) => Some(message),
            TraceEvent::HostMessage(message) => Some(message),
            _ => None,
        };
        match described {
            Some(message) => {
                let out = &mut self.0;
                message.fields(&mut |name, value| {
                    write!(out, "{name}={value:?} ").expect("a string takes it");
                });
            }
            None => write!(self.0, "{event:?}").expect("a string takes it"),
        }
    }
}

fn check(guest: &MockGuest) {
    let bus = guest.host().bus();
    let mut pages = 0;
    for channel in bus.channels() {
        let opened = channel.state.opened();
        assert!(opened.is_some() || !guest.host().is_open(channel.relid));
        let list = opened.and_then(|opened| bus.page_list(channel.relid, opened.gpadl));
        assert!(list.is_some() || !guest.host().is_open(channel.relid));
        pages += list.map_or(0, |list| list.pfns().len());
    }
    assert!(pages <= MAX_PAGES && bus.page_lists() <= MAX_GPADLS);
    assert_eq!(guest.host().next_deadline(), None, "it rests");
}

fn echo(n: u8) -> Box<dyn Device> {
    let instance = Guid::from_u128(ECHO_INSTANCE.to_u128() + u128::from(n));
    Box::new(EchoDevice::new(instance))
}

fn perform(guest: &mut Guest, step: Control, used: &mut u64) {
    let relid = |n: u8| Relid(u32::from(n % 8));
    let gpadl = |n: u8| GpadlId(u32::from(n % 8));
    let vp = |n: u8| VpIndex(if n == 255 { u32::MAX } else { u32::from(n % 3) });
    match step {
        Control::Post(connection, mut bytes) => {
            bytes.truncate(250);
            // A page list of any pages.
            if let Some(8 | 9) = bytes.first() {
                guest.spoil();
            }
            guest.post_bytes((connection % 6).into(), &bytes);
        }
        Control::Contact(version, target) => {
            let version = if version < 128 {
                ProtocolVersion::new(5, u16::from(version % 5))
            } else {
                ProtocolVersion::new(u16::from(version % 7), u16::from(version % 5))
            };
            guest.post(&GuestMessage::InitiateContact(InitiateContact {
                version,
                target_vp: vp(target),
                target: if version >= ProtocolVersion::V5_0 {
                    ContactTarget::Sint {
                        sint: if target > 200 { target } else { 2 },
                        vtl: 0,
                        feature_flags: 0,
                    }
                } else {
                    ContactTarget::InterruptPage(0)
                },
                monitor_pages: [0; 2],
            }));
        }
        Control::RequestOffers => drop(guest.post(&GuestMessage::RequestOffers)),
        Control::Gpadl(channel, id, first, count) => {
            let first = u64::from(first);
            let pages = first..=first + u64::from(count);
            let many = if first % 2 == 0 { 512 } else { FEW };
            let pfns: Vec<u64> = pages.map(|n| FIRST + n % many).collect();
            *used = (*used).max((first + u64::from(count) + 1).min(many));
            for message in gpadl_messages(relid(channel), gpadl(id), &pfns) {
                guest.post(&message);
            }
        }
        Control::GpadlHeader(channel, id) => {
            let messages = gpadl_messages(relid(channel), GpadlId(id.into()), &[FIRST; 255]);
            guest.post(&messages[0]);
        }
        Control::Teardown(channel, id) => {
            guest.post(&GuestMessage::GpadlTeardown {
                relid: relid(channel),
                gpadl: gpadl(id),
            });
        }
        Control::Open(channel, id, offset, target) => {
            guest.post(&GuestMessage::OpenChannel(OpenChannel {
                relid: relid(channel),
                open_id: 1,
                gpadl: gpadl(id),
                target_vp: vp(target),
                downstream_offset: offset.into(),
                user_data: [0; 120],
            }));
        }
        Control::Close(n) => drop(guest.post(&GuestMessage::CloseChannel { relid: relid(n) })),
        Control::Released(n) => {
            guest.post(&GuestMessage::RelidReleased { relid: relid(n) });
        }
        Control::Modify(n, target) => {
            guest.post(&GuestMessage::ModifyChannel(ModifyChannel {
                relid: relid(n),
                target_vp: vp(target),
            }));
        }
        Control::Connect(n) => {
            guest.post(&GuestMessage::TlConnectRequest(TlConnectRequest {
                endpoint: Guid::from_u128(n.into()),
                service: Guid::ZERO,
                silo: None,
            }));
        }
        Control::Unload => drop(guest.post(&GuestMessage::Unload)),
        Control::Signal(n, flag) => {
            let connection = u64::from(EVENT_CONNECTION_BASE) + u64::from(n % 8);
            guest.hypercall(0x1_005d, connection | u64::from(flag / 128) << 32);
        }
        Control::Write(page, word, bytes) => {
            let at = (FIRST + u64::from(page) % *used) * PAGE + u64::from(word) * 8;
            guest.write(at, &bytes);
        }
        Control::Offer(n) => {
            let _ = guest.with_host(|host, now| host.offer(now, echo(n % 8)));
        }
        Control::Rescind(n) => {
            let _ = guest.with_host(|host, now| host.rescind(now, relid(n)));
        }
        Control::Reset => guest.with_host(Host::reset),
        Control::Deaf(deaf) => guest.set_deaf(deaf),
        Control::Advance(seconds) => guest.advance(Duration::from_secs(seconds.into())),
    }
}

/// Sessions worth starting from.
#[allow(clippy::too_many_lines)] // one table, one entry per session
pub fn seeds() -> Vec<(&'static str, Vec<Control>)> {
    use Control as C;
    let start = || vec![C::Contact(3, 0), C::RequestOffers];
    let open = || {
        let mut steps = start();
        steps.extend([C::Gpadl(1, 1, 0, 7), C::Open(1, 1, 4, 0)]);
        steps
    };
    let with = |mut steps: Vec<C>, more: &[C]| {
        steps.extend_from_slice(more);
        steps
    };
    // Type in-band, header 2, length 3, then an id, 8 bytes of payload, a trailer.
    let mut packet = vec![6, 0, 2, 0, 3, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    packet.extend([0x55; 8]);
    packet.extend([0; 8]);
    let sent = [
        C::Write(1, 0, packet),
        C::Write(0, 0, vec![32, 0, 0, 0]),
        C::Signal(1, 0),
    ];
    let hello = GuestMessage::RequestOffers.emit().as_slice().to_vec();
    let wrong = HostMessage::UnloadResponse.emit().as_slice().to_vec();
    vec![
        (
            "versions",
            (0..=255).step_by(5).map(|v| C::Contact(v, 0)).collect(),
        ),
        ("echo", with(open(), &sent)),
        (
            "reopen",
            with(
                open(),
                &[
                    C::Close(1),
                    C::Teardown(1, 1),
                    C::Gpadl(1, 1, 9, 7),
                    C::Open(1, 1, 4, 1),
                ],
            ),
        ),
        (
            "rescind",
            with(
                open(),
                &[C::Rescind(1), C::Close(1), C::Released(1), C::Offer(0)],
            ),
        ),
        (
            "release-open",
            with(open(), &[C::Rescind(1), C::Released(1)]),
        ),
        (
            "hot-add",
            with(
                start(),
                &[
                    C::Offer(1),
                    C::Gpadl(2, 2, 0, 9),
                    C::Open(2, 2, 5, 255),
                    C::Signal(2, 0),
                ],
            ),
        ),
        (
            "modify",
            with(open(), &[C::Modify(1, 1), C::Modify(1, 2), C::Modify(3, 0)]),
        ),
        (
            "unload",
            with(open(), &[C::Unload, C::Contact(200, 1), C::RequestOffers]),
        ),
        (
            "reset",
            with(open(), &[C::Reset, C::Contact(2, 0), C::RequestOffers]),
        ),
        ("kexec", with(open(), &[C::Contact(3, 1), C::RequestOffers])),
        (
            "unfinished",
            with(
                start(),
                &(0..=255)
                    .step_by(3)
                    .map(|n| C::GpadlHeader(1, n))
                    .collect::<Vec<_>>(),
            ),
        ),
        (
            "deaf",
            with(
                open(),
                &[
                    C::Deaf(true),
                    C::GpadlHeader(5, 5),
                    C::GpadlHeader(5, 6),
                    C::Contact(3, 0),
                    C::Deaf(false),
                ],
            ),
        ),
        (
            "connect",
            with(start(), &[C::Connect(1), C::Connect(1), C::Connect(2)]),
        ),
        ("in-use", with(open(), &[C::Teardown(1, 1), C::Close(1)])),
        (
            "broken",
            with(
                open(),
                &[C::Write(0, 0, vec![0xff; 8]), C::Signal(1, 0), C::Close(1)],
            ),
        ),
        (
            "bytes",
            vec![
                C::Post(4, hello),
                C::Post(4, wrong),
                C::Post(5, vec![]),
                C::Advance(1),
            ],
        ),
    ]
}
