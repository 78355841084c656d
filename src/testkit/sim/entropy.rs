//! Takes the operating system's randomness out of this process, once it is asked to.
//!
//! tokio wakes the waiters of a watch, and polls the branches of a `select!`, in an order that it
//! draws from a seed of its own, and dependencies have maps with seeds of their own. All of those come
//! from `getrandom`, by way of the standard library. tokio offers its seed only to builds with
//! `--cfg tokio_unstable`; this needs no other build of everything.
//!
//! tokio also counts its seeds, for the whole process: a run repeats in a process of its own.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

static FIXED: AtomicBool = AtomicBool::new(false);

/// From here on the system's randomness is the same bytes at each call, whichever thread asks first. For
/// simulations only: no node may serve anybody in such a process.
pub fn fix() {
    FIXED.store(true, Ordering::Relaxed);
}

/// Stands before the C library's: the linker prefers what the program itself has.
///
/// # Safety
/// As the C library's: `buffer` has room for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, flags: c_uint) -> isize {
    // SAFETY: the caller gave room for as many bytes; zeros are bytes.
    let room = unsafe {
        std::ptr::write_bytes(buffer.cast::<u8>(), 0x5a, len);
        std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len)
    };
    if FIXED.load(Ordering::Relaxed) {
        return len as isize;
    }
    let flags = rustix::rand::GetRandomFlags::from_bits_retain(flags);
    match rustix::rand::getrandom(&mut *room, flags) {
        Ok(drawn) => drawn as isize,
        Err(error) => refused(error),
    }
}

/// As the C library does: -1, with the reason in its `errno`.
fn refused(error: rustix::io::Errno) -> isize {
    unsafe extern "C" {
        fn __errno_location() -> *mut i32;
    }
    // SAFETY: it answers with this thread's own, which lives as long as the thread.
    unsafe { *__errno_location() = error.raw_os_error() };
    -1
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    fn draw() -> u64 {
        std::thread::spawn(|| RandomState::new().hash_one(7)).join().unwrap()
    }

    /// The standard library does ask here: two maps of two threads differ, then hash alike.
    #[test]
    fn nothing_is_drawn_from_the_system_once_it_is_fixed() {
        assert_ne!(draw(), draw());
        super::fix();
        assert_eq!(draw(), draw());
        super::FIXED.store(false, super::Ordering::Relaxed);
        assert_ne!(draw(), draw());
    }
}
