//! Takes the operating system's randomness out of this process.
//!
//! tokio wakes the waiters of a watch, and polls the branches of a `select!`, in an order that it
//! draws from a seed of its own, and dependencies have maps with seeds of their own. All of those come
//! from `getrandom`, by way of the standard library. tokio offers its seed only to builds with
//! `--cfg tokio_unstable`; this needs no other build of everything.
//!
//! tokio also counts its seeds, for the whole process: a run repeats in a process of its own.

use std::ffi::{c_uint, c_void};

/// Stands before the C library's: the linker prefers what the program itself has.
///
/// The same bytes at each call, so that it does not matter which thread asks first.
///
/// # Safety
/// As the C library's: `buffer` has room for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, _flags: c_uint) -> isize {
    // SAFETY: the caller gave room for as many bytes.
    unsafe { std::ptr::write_bytes(buffer.cast::<u8>(), 0x5a, len) };
    len as isize
}

/// The standard library does ask here: two maps of two threads hash alike.
#[test]
fn nothing_is_drawn_from_the_system() {
    use std::hash::{BuildHasher, RandomState};
    let draw = || std::thread::spawn(|| RandomState::new().hash_one(7)).join().expect("a hash");
    assert_eq!(draw(), draw());
}
