// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The signalling rules of protocol 5.3 and 5.4, case by case.

use std::cell::Cell;

use super::*;

/// Control words that nobody else changes.
#[derive(Default)]
struct Plain {
    write: Cell<u32>,
    read: Cell<u32>,
    mask: Cell<u32>,
    pending: Cell<u32>,
}

impl Words for Plain {
    fn write_index(&self) -> u32 {
        self.write.get()
    }
    fn set_write_index(&self, index: u32) {
        self.write.set(index);
    }
    fn read_index(&self) -> u32 {
        self.read.get()
    }
    fn set_read_index(&self, index: u32) {
        self.read.set(index);
    }
    fn interrupt_mask(&self) -> u32 {
        self.mask.get()
    }
    fn set_interrupt_mask(&self, mask: u32) {
        self.mask.set(mask);
    }
    fn pending_send_sz(&self) -> u32 {
        self.pending.get()
    }
    fn set_pending_send_sz(&self, size: u32) {
        self.pending.set(size);
    }
    fn barrier(&self) {}
}

const SIZE: u32 = 4096;

#[test]
fn a_waiting_guest_is_signalled_when_its_space_appears_and_only_then() {
    // (written by the guest, consumed by us, pending, signal)
    for (written, consumed, pending, signal) in [
        (4000, 1000, 500, true),
        (4000, 1000, 0, false),
        (4000, 1000, 2000, false), // not enough yet
        (3000, 1000, 500, false),  // had enough before
        (4000, 400, 496, false),   // free after is 496: not strictly more
        (4000, 400, 488, true),
        (3600, 8, 496, true), // free before 496 <= pending < 504
        (3600, 8, 495, false),
    ] {
        let words = Plain::default();
        words.write.set(written);
        words.pending.set(pending);
        let mut reader = Reader::new(&words, SIZE).unwrap();
        reader.advance(consumed);
        assert_eq!(
            reader.commit(&words),
            Ok(signal),
            "{written} {consumed} {pending}"
        );
        assert_eq!(words.read.get(), consumed);
    }
}

#[test]
fn before_is_counted_from_the_start_of_the_batch() {
    let words = Plain::default();
    words.write.set(4000);
    words.pending.set(500);
    let mut reader = Reader::new(&words, SIZE).unwrap();
    // Two packets in one batch: the first alone would not have been enough.
    reader.advance(200);
    reader.advance(800);
    assert_eq!(reader.commit(&words), Ok(true));
    reader.advance(800);
    assert_eq!(reader.commit(&words), Ok(false), "it had space already");
}

#[test]
fn a_commit_of_nothing_signals_nobody() {
    let words = Plain::default();
    words.pending.set(8);
    let mut reader = Reader::new(&words, SIZE).unwrap();
    assert_eq!(reader.commit(&words), Ok(false));
}

#[test]
fn unmasking_looks_again_and_masks_again_if_there_is_more() {
    let words = Plain::default();
    let mut reader = Reader::new(&words, SIZE).unwrap();
    Reader::mask(&words);
    assert_eq!(words.mask.get(), 1);
    assert_eq!(reader.available(&words), Ok(0));
    words.write.set(24);
    assert_eq!(reader.unmask(&words), Ok(true));
    assert_eq!(words.mask.get(), 1);
    reader.advance(24);
    assert_eq!(reader.unmask(&words), Ok(false));
    assert_eq!(words.mask.get(), 0);
}

#[test]
fn a_write_signals_only_an_unmasked_guest_with_an_empty_ring() {
    // (read index before, mask, signal)
    for (behind, mask, signal) in [(0, 0, true), (0, 1, false), (24, 0, false), (24, 1, false)] {
        let words = Plain::default();
        words.write.set(64);
        words.read.set(64 - behind);
        words.mask.set(mask);
        let mut writer = Writer::new(&words, SIZE).unwrap();
        writer.reserve(&words, 32).unwrap();
        writer.reserve(&words, 40).unwrap();
        assert_eq!(words.write.get(), 64, "not before it is published");
        assert_eq!(writer.publish(&words), Ok(signal), "{behind} {mask}");
        assert_eq!(words.write.get(), 136);
        assert_eq!(writer.publish(&words), Ok(false), "nothing new");
    }
}

#[test]
fn a_guest_that_caught_up_before_the_publish_is_signalled() {
    let words = Plain::default();
    words.write.set(64);
    let mut writer = Writer::new(&words, SIZE).unwrap();
    writer.reserve(&words, 24).unwrap();
    words.read.set(64);
    assert_eq!(writer.publish(&words), Ok(true));
}

#[test]
fn a_ring_is_never_filled_completely() {
    let words = Plain::default();
    let mut writer = Writer::new(&words, SIZE).unwrap();
    assert_eq!(writer.reserve(&words, SIZE), Err(WriteError::NeverFits));
    assert_eq!(writer.reserve(&words, SIZE - 8), Ok(()));
    assert_eq!(
        writer.reserve(&words, 8),
        Err(WriteError::Full { needed: 8 })
    );
    writer.publish(&words).unwrap();
    assert_ne!(words.write.get(), words.read.get(), "it would look empty");
}

#[test]
fn a_full_ring_asks_for_space_and_stops_asking_when_it_wrote() {
    let words = Plain::default();
    let mut writer = Writer::new(&words, SIZE).unwrap();
    writer.reserve(&words, 4000).unwrap();
    writer.publish(&words).unwrap();
    assert!(writer.reserve(&words, 200).is_err());
    assert_eq!(writer.request_space(&words, 200), Ok(false));
    assert_eq!(words.pending.get(), 200);
    words.read.set(104); // free is 200: not strictly more
    assert_eq!(writer.request_space(&words, 200), Ok(false));
    words.read.set(112);
    assert_eq!(writer.request_space(&words, 200), Ok(true));
    assert_eq!(words.pending.get(), 0);
    // Told to wait, then the guest made room: writing ends the wait.
    assert_eq!(writer.request_space(&words, 2000), Ok(false));
    words.read.set(4000);
    writer.reserve(&words, 2000).unwrap();
    writer.publish(&words).unwrap();
    assert_eq!(words.pending.get(), 0);
}

#[test]
fn indices_outside_the_ring_or_between_words_are_refused() {
    for index in [SIZE, SIZE + 8, u32::MAX, u32::MAX - 7, 4, 1] {
        let words = Plain::default();
        let bad = RingError::BadIndex { index, size: SIZE };
        let mut reader = Reader::new(&words, SIZE).unwrap();
        let mut writer = Writer::new(&words, SIZE).unwrap();
        words.write.set(index);
        assert_eq!(reader.available(&words), Err(bad));
        assert_eq!(reader.unmask(&words), Err(bad));
        assert_eq!(Reader::new(&words, SIZE).unwrap_err(), bad);
        words.write.set(0);
        words.read.set(index);
        assert_eq!(writer.current_free(&words), Err(bad));
        assert_eq!(Writer::new(&words, SIZE).unwrap_err(), bad);
    }
}

#[test]
fn indices_that_go_back_are_refused() {
    let words = Plain::default();
    words.write.set(800);
    let mut reader = Reader::new(&words, SIZE).unwrap();
    reader.advance(400);
    words.write.set(200);
    assert_eq!(reader.unmask(&words), Err(RingError::WentBack));
    // Neither may it come up to what is not given back: that would look empty.
    words.write.set(0);
    assert_eq!(reader.unmask(&words), Err(RingError::WentBack));
    words.write.set(SIZE - ALIGN);
    assert_eq!(reader.present(&words), Ok(SIZE - ALIGN - 400));
    reader.rewind();
    assert_eq!(reader.present(&words), Ok(SIZE - ALIGN));

    let words = Plain::default();
    words.write.set(800);
    words.read.set(400);
    let mut writer = Writer::new(&words, SIZE).unwrap();
    words.read.set(200);
    assert_eq!(writer.current_free(&words), Err(RingError::WentBack));
    words.read.set(808);
    assert_eq!(
        writer.current_free(&words),
        Err(RingError::WentBack),
        "past what was written"
    );
}

#[test]
fn what_the_guest_writes_over_our_index_has_no_effect() {
    let words = Plain::default();
    let mut reader = Reader::new(&words, SIZE).unwrap();
    words.write.set(48);
    words.read.set(4000);
    assert_eq!(reader.available(&words), Ok(48));
    reader.advance(48);
    reader.commit(&words).unwrap();
    assert_eq!(words.read.get(), 48);
}
