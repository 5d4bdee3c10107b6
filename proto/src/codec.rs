//! The one place that knows bincode. Every encoded value that crosses a process boundary or outlives
//! a process passes through here.
//!
//! Fixed-width little-endian integers, a byte limit that holds *before* memory is taken (without it a
//! hostile length aborts the process), and no byte left over after decoding.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{CONTROL_FRAME_MAX, RAFT_FRAME_MAX};

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("cannot encode: {0}")]
    Encode(String),
    #[error("cannot decode: {0}")]
    Decode(String),
    #[error("{0} bytes left over after the value")]
    Trailing(usize),
    #[error("{found} bytes, and at most {limit} are allowed")]
    TooLong { found: usize, limit: usize },
}

/// Encodes any value. Cannot fail for the plain data types of this project.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, config::<RAFT_FRAME_MAX>()).map_err(|e| CodecError::Encode(e.to_string()))
}

/// Decodes a control message or a row: at most `limits::CONTROL_FRAME_MAX` bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_limited::<T, CONTROL_FRAME_MAX>(bytes)
}

/// Decodes a Raft message or log entry: at most `limits::RAFT_FRAME_MAX` bytes.
pub fn decode_large<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_limited::<T, RAFT_FRAME_MAX>(bytes)
}

fn decode_limited<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLong { found: bytes.len(), limit: LIMIT });
    }
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config::<LIMIT>()).map_err(|e| CodecError::Decode(e.to_string()))?;
    if used != bytes.len() {
        return Err(CodecError::Trailing(bytes.len() - used));
    }
    Ok(value)
}

fn config<const LIMIT: usize>()
-> bincode::config::Configuration<bincode::config::LittleEndian, bincode::config::Fixint, bincode::config::Limit<LIMIT>>
{
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_length_is_an_error_and_takes_no_memory() {
        let hostile = u64::MAX.to_le_bytes();
        assert!(decode::<Vec<u8>>(&hostile).is_err());
        assert!(decode::<Vec<u64>>(&(1u64 << 40).to_le_bytes()).is_err());
    }

    #[test]
    fn a_byte_left_over_is_an_error() {
        let mut bytes = encode(&7u32).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<u32>(&bytes), Err(CodecError::Trailing(1))));
    }
}
