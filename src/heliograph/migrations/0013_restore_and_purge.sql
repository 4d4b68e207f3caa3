-- Deletions that are taken back leave no trace, and purges that meet do not undo each other.
set local role heliograph_owner;

-- Until when what was deleted could be restored before its namespace was deleted, too, for a shorter time; null: `erase_at` is what was promised.
alter table registry.deleted_environment add column promised_at timestamptz;

-- What is there again, with when the head that was put back had been issued: readers of the log still hold it for deleted as long as that is the head.
create table registry.restored (
    namespace    text not null,
    environment  text not null,
    issued_at_us bigint not null,
    primary key (namespace, environment)
);
grant select on registry.restored to heliograph_registry;

-- As in 0007, but what was deleted before its namespace keeps in mind what was promised.
create or replace function registry.delete_environments(
    p_namespace    text,
    p_environments text[],
    p_whole        boolean,
    p_shards       int[],
    p_events       bytea[],
    p_actor        text,
    p_deleted_at   timestamptz,
    p_erase_at     timestamptz,
    p_trace        text
) returns text language plpgsql security definer set search_path = '' as $$
declare
    v_gone  int;
    v_place int;
begin
    if p_whole then
        perform from registry.namespace n where n.name = p_namespace for update;
        if not found or exists (select from registry.deleted_namespace d where d.name = p_namespace) then
            return 'missing';
        end if;
    else
        perform from registry.namespace n where n.name = p_namespace for key share;
    end if;
    perform from registry.head h where h.namespace = p_namespace and (p_whole or h.environment = any(p_environments))
      order by h.environment for update;
    select count(*) into v_gone from registry.head h where h.namespace = p_namespace and h.environment = any(p_environments);
    if v_gone <> cardinality(p_environments) then
        return case when p_whole then 'moved' else 'missing' end;
    elsif p_whole and v_gone <> (select count(*) from registry.head h where h.namespace = p_namespace) then
        return 'moved';
    end if;

    insert into registry.deleted_environment
        (namespace, environment, head, number, version, root, configs, deleted_by, deleted_at, erase_at, whole)
        select h.namespace, h.environment, to_jsonb(h), h.number, h.version, h.root, h.configs, p_actor, p_deleted_at, p_erase_at, p_whole
          from registry.head h where h.namespace = p_namespace and h.environment = any(p_environments);
    delete from registry.head h where h.namespace = p_namespace and h.environment = any(p_environments);
    delete from registry.restored r where r.namespace = p_namespace and r.environment = any(p_environments);
    insert into registry.audit (namespace, environment, actor, action, detail)
        select p_namespace, d.environment, p_actor, 'environment.delete',
               jsonb_build_object('number', d.number, 'erase_at', p_erase_at, 'with_namespace', p_whole)
          from registry.deleted_environment d where d.namespace = p_namespace and d.environment = any(p_environments);
    if p_whole then
        insert into registry.deleted_namespace (name, deleted_by, deleted_at, erase_at)
            values (p_namespace, p_actor, p_deleted_at, p_erase_at);
        update registry.deleted_environment d set promised_at = d.erase_at, erase_at = p_erase_at
         where d.namespace = p_namespace and d.erase_at > p_erase_at;
        insert into registry.audit (namespace, actor, action, detail)
            values (p_namespace, p_actor, 'namespace.delete',
                    jsonb_build_object('environments', to_jsonb(p_environments), 'erase_at', p_erase_at));
    end if;
    for v_place in select generate_subscripts(p_shards, 1) loop
        perform eventlog.append_event(p_shards[v_place], p_namespace || '/' || p_environments[v_place], p_events[v_place], p_trace);
    end loop;
    return 'deleted';
end $$;

-- As in 0007, but what was promised before the namespace was deleted holds again, and it is known what is to be told.
create or replace function registry.restore_environments(p_namespace text, p_environment text, p_actor text) returns text[]
language plpgsql security definer set search_path = '' as $$
declare
    v_back  text[];
    v_heads jsonb;
begin
    perform from registry.namespace n where n.name = p_namespace for update;
    perform from registry.deleted_environment d where d.namespace = p_namespace order by d.environment for update;
    if p_environment is null then
        delete from registry.deleted_namespace d where d.name = p_namespace and d.erase_at > now();
        if not found then
            return null;
        end if;
        update registry.deleted_environment d set erase_at = d.promised_at, promised_at = null
         where d.namespace = p_namespace and d.promised_at is not null and not d.erasing;
        insert into registry.audit (namespace, actor, action) values (p_namespace, p_actor, 'namespace.restore');
    elsif exists (select from registry.deleted_namespace d where d.name = p_namespace) then
        return null;
    end if;
    select array_agg(d.environment order by d.environment), jsonb_agg(d.head) into v_back, v_heads
      from registry.deleted_environment d
     where d.namespace = p_namespace and not d.erasing and d.erase_at > now()
       and (d.environment = p_environment or (p_environment is null and d.whole));
    if v_back is null then
        return case when p_environment is null then array[]::text[] end;
    end if;
    delete from registry.deleted_environment d where d.namespace = p_namespace and d.environment = any(v_back);
    perform set_config('heliograph.restoring', 'yes', true);
    insert into registry.head select (jsonb_populate_record(null::registry.head, h)).* from jsonb_array_elements(v_heads) h;
    insert into registry.restored (namespace, environment, issued_at_us)
        select p_namespace, h ->> 'environment', (h ->> 'issued_at_us')::bigint from jsonb_array_elements(v_heads) h
        on conflict (namespace, environment) do update set issued_at_us = excluded.issued_at_us;
    insert into registry.audit (namespace, environment, actor, action)
        select p_namespace, name, p_actor, 'environment.restore' from unnest(v_back) name;
    return v_back;
end $$;

-- Who asks for the purge of a text. That no head names it holds as long as the mark of one and the same ask stands: only that ask's own purge goes by
-- it, and nobody else takes it back. Null: an earlier release's, which does not tell one from the other.
alter table registry.purged add column ask uuid;

-- From now on nothing new may refer to them. Called before it is known whether something does. False: somebody else asked for one of them within
-- the last minute, and nothing was changed. Who asked before that loses it, should their purge still go on.
create function registry.ask_purge(p_namespace text, p_digests bytea[], p_ask uuid) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
    perform from registry.namespace n where n.name = p_namespace for no key update;  -- one at a time
    if exists (select from registry.purged p where p.namespace = p_namespace and p.digest = any(p_digests)
                  and p.purge is null and p.at > clock_timestamp() - interval '1 minute') then
        return false;
    end if;
    insert into registry.purged as p (namespace, digest, ask, at)
        select p_namespace, d, p_ask, clock_timestamp() from unnest(p_digests) d order by d
        on conflict (namespace, digest) do update set ask = excluded.ask, at = excluded.at where p.purge is null;
    return true;
end $$;

create function registry.cancel_purge(p_namespace text, p_digests bytea[], p_ask uuid) returns void
language sql security definer set search_path = '' as $$
    delete from registry.purged p
     where p.namespace = p_namespace and p.digest = any(p_digests) and p.purge is null and p.ask is not distinct from p_ask
$$;

-- As in 0007, for an ask. False: it was not asked for, or too long ago, or somebody else has asked since; nothing was changed.
create function registry.purge_objects(
    p_namespace  text,
    p_digests    bytea[],
    p_tombstone  bytea,
    p_at         timestamptz,
    p_actor      text,
    p_reason     text,
    p_order      text,
    p_statement  text,
    p_signatures text,
    p_shards     int[],                           -- ascending
    p_event      bytea,
    p_trace      text,
    p_ask        uuid
) returns boolean language plpgsql security definer set search_path = '' as $$
declare
    v_purge bigint;
    v_shard int;
begin
    perform set_config('heliograph.erasing', 'yes', true);
    perform from registry.purged p where p.namespace = p_namespace and p.digest = any(p_digests) order by p.digest for update;
    if cardinality(p_digests) <> (select count(*) from registry.purged p where p.namespace = p_namespace and p.digest = any(p_digests)
                                     and p.purge is null and p.ask is not distinct from p_ask
                                     and p.at > now() - interval '10 minutes') then
        return false;
    end if;
    update registry.object o set body = p_tombstone, purged = true
     where o.namespace = p_namespace and o.digest = any(p_digests) and o.kind in ('document', 'schema', 'message') and not o.purged;
    insert into registry.purge (namespace, at, purged_by, reason, order_text, digests, statement, signatures)
        values (p_namespace, p_at, p_actor, p_reason, p_order, p_digests, p_statement, p_signatures) returning id into v_purge;
    update registry.purged p set purge = v_purge, ask = null, at = clock_timestamp() where p.namespace = p_namespace and p.digest = any(p_digests);
    insert into registry.audit (namespace, actor, action, detail)
        values (p_namespace, p_actor, 'object.purge',
                jsonb_build_object('purge', v_purge, 'reason', p_reason, 'order', p_order, 'statement', p_statement,
                                   'signatures', p_signatures::jsonb));
    foreach v_shard in array p_shards loop
        perform eventlog.append_event(v_shard, p_namespace, p_event, p_trace);
    end loop;
    return true;
end $$;

-- As the previous release calls them.
create or replace function registry.ask_purge(p_namespace text, p_digests bytea[]) returns void
language sql security definer set search_path = '' as $$
    select registry.ask_purge(p_namespace, p_digests, null::uuid)
$$;

create or replace function registry.cancel_purge(p_namespace text, p_digests bytea[]) returns void
language sql security definer set search_path = '' as $$
    select registry.cancel_purge(p_namespace, p_digests, null::uuid)
$$;

create or replace function registry.purge_objects(
    p_namespace  text,
    p_digests    bytea[],
    p_tombstone  bytea,
    p_at         timestamptz,
    p_actor      text,
    p_reason     text,
    p_order      text,
    p_statement  text,
    p_signatures text,
    p_shards     int[],
    p_event      bytea,
    p_trace      text
) returns boolean language sql security definer set search_path = '' as $$
    select registry.purge_objects(p_namespace, p_digests, p_tombstone, p_at, p_actor, p_reason, p_order, p_statement, p_signatures, p_shards,
                                  p_event, p_trace, null::uuid)
$$;

revoke execute on function registry.ask_purge(text, bytea[], uuid), registry.cancel_purge(text, bytea[], uuid),
  registry.purge_objects(text, bytea[], bytea, timestamptz, text, text, text, text, text, int[], bytea, text, uuid) from public;
grant execute on function registry.ask_purge(text, bytea[], uuid), registry.cancel_purge(text, bytea[], uuid),
  registry.purge_objects(text, bytea[], bytea, timestamptz, text, text, text, text, text, int[], bytea, text, uuid) to heliograph_registry;
reset role;
