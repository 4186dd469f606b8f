//! The tests; their module's name is that of the tier that runs them.

mod capture;
mod enrolment;
mod idle;
mod probes;
mod process;
mod proof;
mod repair;
