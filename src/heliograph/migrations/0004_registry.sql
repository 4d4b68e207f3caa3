-- The registry's schema: objects by digest, versions, heads, and what was done by whom.
--
-- Objects, versions and audit rows are written once. Grants keep the service's role from changing or deleting them, and triggers keep
-- everybody else from doing it by accident. Heads only move forward.
--
-- Lock order, everywhere: an existing head's row, then the idempotency row, then a new head's, then objects in ascending order of their
-- digests, then (inside eventlog.append_event) the row of the shard, which is held through the fsync.
--
-- Digests are 32 raw bytes. Times ending in _us are microseconds since 1970.

create schema registry authorization heliograph_owner;
grant usage on schema registry to heliograph_registry;
set local role heliograph_owner;

create table registry.namespace (
    name       text primary key,
    created_by text not null,
    created_at timestamptz not null default now()
);

create type registry.object_kind as enum ('document', 'schema', 'message', 'leaf', 'statement', 'node');

-- No foreign key to the namespace: it would be checked once for each of up to 15,000 rows of a version. The head's key suffices.
create table registry.object (
    namespace text not null,
    digest    bytea not null check (length(digest) = 32),
    kind      registry.object_kind not null,
    body      bytea not null,
    purged    boolean not null default false,
    primary key (namespace, digest)
);

create table registry.version (
    namespace         text not null,
    environment       text not null,
    number            bigint not null check (number > 0),
    id                bytea not null unique check (length(id) = 32),
    epoch             bigint not null,
    root              bytea not null check (length(root) = 32),
    record            text not null,              -- the exact text that is hashed and signed
    record_signatures text not null,
    head              text not null,              -- the head it was committed with, as signed then
    head_signatures   text not null,
    message           bytea,
    names             text[] not null,            -- configs it changed; for people, the roots are the truth
    configs           int not null,               -- how many there are
    received_at_us    bigint not null,
    trace             text,
    committed_at      timestamptz not null default now(),
    primary key (namespace, environment, number)
);

create table registry.head (
    namespace     text not null references registry.namespace,
    environment   text not null,
    epoch         bigint not null,
    number        bigint not null,
    version       bytea not null,
    root          bytea not null,
    peaks         bytea not null,                 -- of the history tree over versions 1 .. number, 32 bytes each
    at_us         bigint not null,                -- the version's own time
    configs       int not null,
    safe          bigint not null check (safe <= number),
    issued_at_us  bigint not null,
    expires_at_us bigint not null,
    payload       text not null,                  -- the exact text that is signed
    signatures    text not null,
    primary key (namespace, environment)
) with (fillfactor = 50);                         -- every commit updates it in place

-- The first answer to a request with an Idempotency-Key, written by the transaction it answers for.
create table registry.idempotency (
    principal  text not null,
    key        text not null,
    request    bytea not null check (length(request) = 32),
    status     int not null,
    answer     bytea not null,
    created_at timestamptz not null default now(),
    primary key (principal, key)
);
create index idempotency_age on registry.idempotency (created_at);

create table registry.audit (
    id          bigint generated always as identity primary key,
    at          timestamptz not null default now(),
    namespace   text,
    environment text,
    actor       text not null,
    action      text not null,
    detail      jsonb not null default '{}'
);
create index audit_of_environment on registry.audit (namespace, environment, id);

create function registry.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'registry.% is written once', tg_table_name using errcode = 'restrict_violation';
end $$;

create trigger written_once before update or delete or truncate on registry.object
    for each statement execute function registry.refuse_change();
create trigger written_once before update or delete or truncate on registry.version
    for each statement execute function registry.refuse_change();
create trigger written_once before update or delete or truncate on registry.audit
    for each statement execute function registry.refuse_change();

create function registry.only_forward() returns trigger language plpgsql as $$
begin
    if (new.epoch, new.number, new.issued_at_us) <= (old.epoch, old.number, old.issued_at_us)
       or new.number > old.number + 1
       or new.safe < old.safe
       or (new.number = old.number and new.epoch = old.epoch and new.version <> old.version) then
        raise exception 'the head of %/% only moves forward, one version at a time', old.namespace, old.environment
            using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

create trigger only_forward before update on registry.head for each row execute function registry.only_forward();

-- Commits one version, or says why not. Everything or nothing:
--   committed  objects, version, head, event, audit row and idempotency row are there
--   moved      the head is not (p_base, p_base_issued_at_us) any more. Nothing was written
--   replayed   the idempotency key has committed this very request before; `status`, `answer` are what was said then
--   reused     the idempotency key has committed another request
--   missing    no such environment, or namespace for a new one
--   exists     (p_base null) the environment is there already
create function registry.commit_version(
    p_namespace         text,
    p_environment       text,
    p_base              bytea,                    -- version id of the head built upon; null: version 1 of a new environment
    p_base_issued_at_us bigint,
    p_digests           bytea[],                  -- objects, ascending by digest
    p_kinds             text[],
    p_bodies            bytea[],
    p_epoch             bigint,
    p_number            bigint,
    p_version           bytea,
    p_root              bytea,
    p_peaks             bytea,
    p_at_us             bigint,
    p_message           bytea,
    p_names             text[],
    p_configs           int,
    p_record            text,
    p_record_signatures text,
    p_safe              bigint,
    p_issued_at_us      bigint,
    p_expires_at_us     bigint,
    p_head              text,
    p_head_signatures   text,
    p_received_at_us    bigint,
    p_trace             text,
    p_shard             int,
    p_event             bytea,
    p_actor             text,
    p_action            text,
    p_detail            text,
    p_principal         text,
    p_key               text,                     -- null: no idempotency
    p_request           bytea,
    p_status            int,
    p_answer            bytea
) returns table (outcome text, status int, answer bytea) language plpgsql as $$
#variable_conflict use_column
declare
    v_head registry.head;
    v_seen registry.idempotency;
begin
    if p_base is not null then
        select * into v_head from registry.head h where h.namespace = p_namespace and h.environment = p_environment for update;
        if not found then
            return query select 'missing', null::int, null::bytea;
            return;
        end if;
    elsif not exists (select from registry.namespace n where n.name = p_namespace) then
        return query select 'missing', null::int, null::bytea;
        return;
    end if;

    if p_key is not null then
        select * into v_seen from registry.idempotency i where i.principal = p_principal and i.key = p_key;
        if not found and (p_base is null or (v_head.version = p_base and v_head.issued_at_us = p_base_issued_at_us)) then
            insert into registry.idempotency (principal, key, request, status, answer)
                values (p_principal, p_key, p_request, p_status, p_answer) on conflict do nothing;
            if not found then
                select * into v_seen from registry.idempotency i where i.principal = p_principal and i.key = p_key;
            end if;
        end if;
        if v_seen.key is not null then
            return query select case when v_seen.request = p_request then 'replayed' else 'reused' end,
                                v_seen.status, v_seen.answer;
            return;
        end if;
    end if;

    if p_base is null then
        insert into registry.head (namespace, environment, epoch, number, version, root, peaks, at_us, configs, safe,
                                   issued_at_us, expires_at_us, payload, signatures)
            values (p_namespace, p_environment, p_epoch, p_number, p_version, p_root, p_peaks, p_at_us, p_configs, p_safe,
                    p_issued_at_us, p_expires_at_us, p_head, p_head_signatures) on conflict do nothing;
        if not found then
            delete from registry.idempotency i where i.principal = p_principal and i.key = p_key;
            return query select 'exists', null::int, null::bytea;
            return;
        end if;
    elsif v_head.version <> p_base or v_head.issued_at_us <> p_base_issued_at_us then
        return query select 'moved', null::int, null::bytea;
        return;
    else
        update registry.head h
           set epoch = p_epoch, number = p_number, version = p_version, root = p_root, peaks = p_peaks, at_us = p_at_us,
               configs = p_configs, safe = p_safe, issued_at_us = p_issued_at_us, expires_at_us = p_expires_at_us,
               payload = p_head, signatures = p_head_signatures
         where h.namespace = p_namespace and h.environment = p_environment;
    end if;

    insert into registry.object (namespace, digest, kind, body)
        select p_namespace, o.digest, o.kind::registry.object_kind, o.body
          from unnest(p_digests, p_kinds, p_bodies) with ordinality as o (digest, kind, body, place) order by o.place
        on conflict do nothing;
    insert into registry.version (namespace, environment, number, id, epoch, root, record, record_signatures, head, head_signatures,
                                  message, names, configs, received_at_us, trace)
        values (p_namespace, p_environment, p_number, p_version, p_epoch, p_root, p_record, p_record_signatures, p_head,
                p_head_signatures, p_message, p_names, p_configs, p_received_at_us, p_trace);
    insert into registry.audit (namespace, environment, actor, action, detail)
        values (p_namespace, p_environment, p_actor, p_action, p_detail::jsonb);
    perform eventlog.append_event(p_shard, p_namespace || '/' || p_environment, p_event, p_trace);
    return query select 'committed', null::int, null::bytea;
end $$;

-- A fresh signature over an unchanged version. False: the head has moved meanwhile, nothing was written.
create function registry.renew_head(
    p_namespace         text,
    p_environment       text,
    p_version           bytea,
    p_base_issued_at_us bigint,
    p_issued_at_us      bigint,
    p_expires_at_us     bigint,
    p_head              text,
    p_head_signatures   text,
    p_shard             int,
    p_event             bytea
) returns boolean language plpgsql as $$
begin
    update registry.head
       set issued_at_us = p_issued_at_us, expires_at_us = p_expires_at_us, payload = p_head, signatures = p_head_signatures
     where namespace = p_namespace and environment = p_environment and version = p_version and issued_at_us = p_base_issued_at_us;
    if not found then
        return false;
    end if;
    perform eventlog.append_event(p_shard, p_namespace || '/' || p_environment, p_event, null);
    return true;
end $$;

grant select, insert on registry.namespace, registry.object, registry.version, registry.audit to heliograph_registry;
grant select, insert, update on registry.head to heliograph_registry;
grant select, insert, delete on registry.idempotency to heliograph_registry;
reset role;
