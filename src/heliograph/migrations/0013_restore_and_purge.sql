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

reset role;
