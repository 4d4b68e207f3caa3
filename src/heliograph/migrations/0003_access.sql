-- Tokens. Only the SHA-256 of a token's text is here; it has 178 bits of randomness, so no slow hash is needed.
create schema access authorization heliograph_owner;
set local role heliograph_owner;

create table access.token (
  id         text primary key,
  sha256     bytea not null unique check (length(sha256) = 32),
  kind       text not null check (kind in ('admin', 'author', 'client', 'service')),
  name       text not null,
  scopes     jsonb not null,
  created_by text,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  revoked_at timestamptz,
  revoked_by text,
  last_used_at timestamptz  -- to the hour: it finds tokens that nobody uses, and must cost nothing
);

grant usage on schema access to heliograph_registry;
grant select, insert on access.token to heliograph_registry;
grant update (revoked_at, revoked_by, last_used_at) on access.token to heliograph_registry;
