//! What can be wrong with a resource.

use thiserror::Error;

/// A resource that could not be used. The sender is at fault, or newer than this build.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}: {fault}", display_name(.resource))]
pub struct DecodeError {
    /// The resource's name; empty where not even that could be read.
    pub resource: String,
    /// What is wrong with it.
    pub fault: Fault,
}

fn display_name(name: &str) -> &str {
    if name.is_empty() { "(unnamed)" } else { name }
}

/// What is wrong with a resource. Fields are named as in the `.proto` files.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// The bytes are no message.
    #[error("not a protobuf message of its type: {0}")]
    Garbled(String),
    /// The content is of another type than the response.
    #[error("content is of type `{found}`")]
    Type {
        /// The type that it claims.
        found: String,
    },
    /// The content names something else than the resource's name says.
    #[error("content is named `{own}`")]
    OtherName {
        /// The name in the content.
        own: String,
    },
    /// A field that nothing can be done without is absent.
    #[error("`{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A port beyond 65535.
    #[error("`{field}` is {value}, which is no port")]
    Port {
        /// The field.
        field: &'static str,
        /// The number.
        value: u32,
    },
    /// An address of a length that no address has.
    #[error("`{field}` has an address of {length} bytes, which is neither IPv4 nor IPv6")]
    AddressLength {
        /// The field.
        field: &'static str,
        /// How many bytes there are.
        length: usize,
    },
    /// A block of addresses where a single one must stand.
    #[error("`{field}` has a block of addresses (prefix length {length}) where a single address must stand")]
    Block {
        /// The field.
        field: &'static str,
        /// The prefix length.
        length: u32,
    },
    /// A choice that this build does not know and cannot guess without risk.
    #[error("`{field}` has the unknown value {value}")]
    Choice {
        /// The field.
        field: &'static str,
        /// The number.
        value: i32,
    },
    /// A text that is not of the form its field must have.
    #[error("`{field}` is `{value}`, which is not of the form {form}")]
    Form {
        /// The field.
        field: &'static str,
        /// The text.
        value: String,
        /// The form it should have.
        form: &'static str,
    },
}
