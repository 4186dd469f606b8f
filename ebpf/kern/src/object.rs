//! What every object needs besides its programs.

/// The kernel lets any program call the helpers that we use; none asks for a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Reads one field of a program's context.
///
/// Volatile, because LLVM otherwise merges neighbouring 32-bit reads into one of 64 bits, which the verifier refuses.
macro_rules! field {
    ($place:expr) => {
        // SAFETY: the kernel passes a valid context, and the verifier checks offset and size of each read.
        unsafe { core::ptr::read_volatile(&raw const $place) }
    };
}

pub(crate) use field;
