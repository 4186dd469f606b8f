//! Copy buffers, borrowed from a store of the thread and given back.

use std::cell::RefCell;

/// As much as one read takes.
const SIZE: usize = 64 * 1024;
/// As much as one read takes where memory is scarce.
const SMALL: usize = 2 * 1024;
/// How many unused buffers a thread keeps: 1 MiB.
const KEPT: usize = 16;

thread_local! {
    static STORE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A borrowed buffer; dropping it gives it back to the thread that drops it.
pub(super) struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    pub(super) fn borrow() -> Self {
        let kept = STORE.with_borrow_mut(Vec::pop);
        Self(Some(kept.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())))
    }

    /// One that is made for the occasion and not kept.
    pub(super) fn small() -> Self {
        Self(Some(vec![0; SMALL].into_boxed_slice()))
    }

    pub(super) fn is_small(&self) -> bool {
        self.as_slice().len() < SIZE
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(buffer) = self.0.take().filter(|buffer| buffer.len() == SIZE) else { return };
        // While a thread ends its store may be gone; the buffer is then simply freed.
        let _ = STORE.try_with(|store| {
            let mut store = store.borrow_mut();
            if store.len() < KEPT {
                store.push(buffer);
            }
        });
    }
}

/// How many unused buffers the calling thread has.
#[cfg(test)]
pub(super) fn kept() -> usize {
    STORE.with_borrow(Vec::len)
}
