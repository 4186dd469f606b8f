//! Settings of the calling thread's network namespace. Call these inside `Netns::run`.

use std::fs;
use std::io;
use std::path::Path;

/// Whether the kernel has IPv6.
pub(super) fn has_v6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").exists()
}

/// Addresses are usable at once: nobody else can have them, so there is nothing to detect, and nobody advertises routes.
pub(super) fn quiet_v6() {
    for of in ["all", "default"] {
        for (key, value) in [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0")] {
            // Where there is no IPv6 there is nothing to quieten.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{of}/{key}"), value);
        }
    }
}

/// Makes a router of the namespace.
pub(super) fn forward() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    for of in ["all", "default"] {
        // The machine's own taste in reverse-path checks, which a new namespace inherits, is not for our routers.
        fs::write(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter"), "0")?;
    }
    if has_v6() {
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}
